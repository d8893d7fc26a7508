"""The pages speak of what there is, and no kind of test is left out of `.ci/run`."""

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_lists_every_file_with_its_first_sentence() -> None:
    spec = importlib.util.spec_from_file_location("list_files", ROOT / "scripts/list_files.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs/architecture.md").read_text()
    assert script.rewritten(page) == page, "run: .venv/bin/python scripts/list_files.py"


def test_the_page_on_security_names_tests_that_there_are() -> None:
    named = re.findall(r"`([a-z/]+test_\w+\.py)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def test_every_kind_of_test_but_the_slow_ones_is_run_for_a_change() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    kinds = {marker.partition(":")[0] for marker in options["markers"]} - {"slow"}
    run = (ROOT / ".ci/run").read_text().splitlines()
    assert kinds == {"nodes", "network", "clients"}
    assert {f"make test-{kind}" for kind in kinds} | {"make test"} <= set(run)


def test_whole_nodes_are_started_only_by_tests_that_say_so() -> None:
    """They cost seconds of every core: the ordinary suite has two (test_examples.py)."""
    starts = re.compile(r'^from tests\.whole\.swarms import|executable, "-m", "swarm\.node"', re.M)
    starting = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if starts.search(path.read_text())
    ]
    assert len(starting) > 5
    told = re.compile(r"pytest\.mark\.(nodes|network|slow|clients)")
    untold = [name for name in starting if not told.search((ROOT / name).read_text())]
    assert untold == ["tests/test_examples.py"]
