"""LeanTransformers: transformers' models without what only training, losses and compilers need.

A plain import of transformers' models also loads `torch._dynamo`, `torch.distributed.tensor` and
`scipy.optimize`: two seconds and a hundred megabytes in every worker, and a CPU worker uses none of
them. transformers has guards of its own for machines without scipy or distributed torch: they say
no while it is imported. It names dynamo only to mark functions for a compiler, and so does torch
where a model is built without memory: meanwhile marks that mark nothing stand there. Whoever asks
for `torch._dynamo` afterwards gets the real one.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

DYNAMO = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
MASKS = f"{DYNAMO}._trace_wrapped_higher_order_op"  # for masks of compiled flex attention
GUARDS = ("is_scipy_available", "is_torch_distributed_available")
MODELS = (
    "transformers.modeling_utils",
    "transformers.masking_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


def import_lean() -> None:
    """Import transformers' models for a process that neither trains nor compiles.

    Does nothing where they, or dynamo, are loaded already. A transformers that asks for more of
    dynamo is imported plainly by whoever needs it next.
    """
    if DYNAMO in sys.modules or MODELS[0] in sys.modules:
        return
    try:
        with _closed_guards(), _marks_without_dynamo():
            for name in MODELS:
                importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - it saves seconds only: no worker may be lost for it
        logger.warning("this transformers cannot be imported without a compiler: %s", error)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Build a model without memory; where no compiler is loaded, nothing is marked for it."""
    if DYNAMO in sys.modules:
        yield
        return
    with _marks_without_dynamo():
        yield


@contextmanager
def _closed_guards() -> Iterator[None]:
    """Let transformers find neither scipy nor distributed torch, as on machines without them."""
    homes = [importlib.import_module(f"transformers.utils{end}") for end in ("", ".import_utils")]
    before = {(home, name): getattr(home, name) for home in homes for name in GUARDS}
    for home, name in before:
        setattr(home, name, _absent)
    try:
        yield
    finally:
        for (home, name), guard in before.items():
            setattr(home, name, guard)


def _absent() -> bool:
    return False


@contextmanager
def _marks_without_dynamo() -> Iterator[None]:
    """Stand in for dynamo with decorators that return functions as they are."""
    torch = importlib.import_module("torch")
    dynamo, masks = ModuleType(DYNAMO), ModuleType(MASKS)
    dynamo.__path__ = []  # a package: its submodule is imported by name
    for name in MARKS:
        setattr(dynamo, name, _unmarked)
    masks.__dict__["TransformGetItemToIndex"] = _NoMasks
    sys.modules |= {DYNAMO: dynamo, MASKS: masks}
    torch.__dict__["_dynamo"] = dynamo
    try:
        yield
    finally:
        del sys.modules[DYNAMO], sys.modules[MASKS], torch.__dict__["_dynamo"]


def _unmarked(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """A decorator, with or without arguments, that leaves functions alone."""
    return (lambda given: given) if function is None else function


class _NoMasks:
    """What compiled flex attention would enter to build a mask: our engine builds its own."""

    def __init__(self) -> None:
        raise RuntimeError("This process does not compile: see node/engine/lean_transformers.py.")
