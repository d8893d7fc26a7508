"""The page on the architecture speaks of the files that there are."""

import importlib.util
import re
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
