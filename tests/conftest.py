"""How the suite runs: long files spread among short ones, and imports left out of collecting."""

import gc
from collections import defaultdict
from pathlib import Path

import pytest

from tests.hung_tests import pytest_runtest_teardown, pytest_timeout_set_timer  # noqa: F401 - hooks

HERE = Path(__file__).parent
LONGEST_FIRST = (  # files that start nodes: seconds of waiting, which short files fill
    "whole/test_swarm.py",
    "whole/test_folder.py",
    "client/cli/test_demo.py",
    "test_examples.py",
    "whole/test_from_hub.py",
    "whole/test_from_peers.py",
    "whole/test_bad_input.py",
)


def pytest_collection() -> None:
    """Look for no garbage among what is imported: that is a fifth of a collector's time."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest file, and let as many short files lie between any two long ones."""
    files: defaultdict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    long = [HERE / name for name in LONGEST_FIRST if HERE / name in files]
    short = [path for path in files if path not in long]
    places = {path: (at * len(short) / len(long), 0) for at, path in enumerate(long)}
    places |= {path: (float(at), 1) for at, path in enumerate(short)}
    items[:] = [item for path in sorted(files, key=places.__getitem__) for item in files[path]]


def pytest_collection_finish() -> None:
    """Let the collector forget a million objects of torch and transformers, which all stay."""
    gc.collect()
    gc.freeze()
    gc.enable()
