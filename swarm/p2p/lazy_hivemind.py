"""LazyHivemind: hivemind's packages without what their `__init__` files load for training.

`import hivemind.p2p` loads torch, optimizers and averaging: seconds and hundreds of megabytes that
no command of a person needs. Here a package of hivemind loads nothing; a name that its own
`__init__` would have imported is taken from the module it says, when it is asked for.
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = frozenset({"hivemind", "hivemind.dht", "hivemind.p2p", "hivemind.utils"})


class LazyInit(Loader):
    """Fills a package with the means to find its names, in place of running its `__init__`."""

    def __init__(self, whole: Loader, path: Path) -> None:
        self._whole = whole
        source = path.read_text(encoding="utf-8")
        self._modules, self._made = modules_of(source), names_made_by(source)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let Python make it."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give the package a `__getattr__` (PEP 562)."""

        def find(name: str) -> object:
            if name in self._modules:
                return getattr(importlib.import_module(self._modules[name]), name)
            if name not in self._made:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            self._whole.exec_module(module)  # made there, not just imported
            return module.__dict__[name]

        module.__dict__["__getattr__"] = find


class LazyFinder(MetaPathFinder):
    """Finds the packages above as Python would, but with a loader of ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of those packages, else None."""
        if fullname not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = LazyInit(spec.loader, Path(spec.origin))
        return spec


def modules_of(source: str) -> dict[str, str]:
    """From which module each name comes that an `__init__` of this source imports."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
        if alias.asname in (None, alias.name)
    }


def names_made_by(source: str) -> frozenset[str]:
    """The names that an `__init__` of this source assigns or defines."""
    made: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            made.update(each.id for each in node.targets if isinstance(each, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            made.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
    return frozenset(made)


def install() -> None:
    """From now on this process loads of hivemind what it uses; what it has loaded stays."""
    if not any(isinstance(finder, LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LazyFinder())
