"""PackageFinder: our packages are those beside this one, whatever the path finds first.

A script called client.py, or a folder with a node.py, stands before us on Python's path.
As a script this file starts a module of ours: `python -P .../package_finder.py node.worker ...`;
it imports nothing of ours, so that it works before anything of ours is found.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[2]  # where our packages lie side by side
PACKAGES = ("swarm", "client", "node", "planner")


class PackageFinder(MetaPathFinder):
    """Finds our packages in `HOME` and leaves everything else to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of our packages, else None."""
        return PathFinder.find_spec(fullname, [str(HOME)]) if fullname in PACKAGES else None


FINDER = PackageFinder()


def claim_names() -> None:
    """From now on `import node` finds ours in this process, which is a program of ours."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


def is_ours(spec: ModuleSpec | None) -> bool:
    """Whether a package or one of its modules lies beside this package."""
    if spec is None or spec.origin is None:
        return False
    home = HOME / spec.name.partition(".")[0]
    return Path(spec.origin).resolve().is_relative_to(home)


def command_of(module: str) -> tuple[str, ...]:
    """The command line that runs a module of ours in a new process, from any folder."""
    return sys.executable, "-P", str(Path(__file__).resolve()), module


if __name__ == "__main__":
    del sys.argv[0]
    claim_names()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
