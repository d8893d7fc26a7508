"""Entry points: import a package of ours by name when called, the one beside this and no other."""

import gc
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from types import ModuleType
from typing import NoReturn

from swarm.commands.package_finder import FINDER, claim_names, is_ours
from swarm.errors import BadInput

_IMPORTING = RLock()


def import_package(name: str) -> ModuleType:
    """Import a package or one of its files, such as "node.main", in a program of ours.

    Raises BadInput if another module has taken its name before us.
    """
    package = name.partition(".")[0]
    claim_names()
    loaded = sys.modules.get(package)
    if loaded is not None and not is_ours(loaded.__spec__):
        found = getattr(loaded, "__file__", None) or "Another module"
        raise BadInput(
            f"{found} was loaded in place of Swarm's own package {package!r}.",
            "Start Python without it.",
        )
    return _import(name)


def import_package_privately(package: str) -> ModuleType:
    """Import a package in somebody else's program, where the name may be theirs, and stays so.

    Where Python finds ours by that name, it is the very same object.
    """
    with _IMPORTING:
        if is_ours(_spec_of(package)):
            return _import(package)
        with _name_replaced(package):
            return _loaded(_import(package))


def _loaded(package: ModuleType) -> ModuleType:
    """A package with all that it exports: later, its name will mean something else."""
    for name in getattr(package, "__all__", ()):
        getattr(package, name)
    return package


@contextmanager
def _name_replaced(package: str) -> Iterator[None]:
    """Let a package's name mean ours for a while; give it back with what it meant before."""
    theirs = _removed_modules(package)
    sys.meta_path.insert(0, FINDER)
    try:
        yield
    finally:
        sys.meta_path.remove(FINDER)
        _removed_modules(package)
        sys.modules.update(theirs)


def _removed_modules(package: str) -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == package]
    return {name: sys.modules.pop(name) for name in names}


def _spec_of(package: str) -> importlib.machinery.ModuleSpec | None:
    """What the name means now, or would mean if it were imported."""
    if package in sys.modules:
        return sys.modules[package].__spec__
    return importlib.util.find_spec(package)


def _import(name: str) -> ModuleType:
    gc.disable()  # what is imported stays: to look for garbage in it costs a tenth of the time
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()


def leave(code: int) -> NoReturn:
    """End the process at once: everything is closed, and taking torch apart costs seconds."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody is left who could hear of it
            stream.flush()
    os._exit(code)
