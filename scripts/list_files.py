"""Write the list of files in docs/architecture.md afresh, each with its first sentence."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
MARK = "<!-- files: written by scripts/list_files.py -->\n"
PACKAGES = ("swarm", "node", "client", "planner")


def listed() -> str:
    """The list in Markdown, one table for each folder."""
    return "".join(_section(folder) for package in PACKAGES for folder in _folders(package))


def _folders(package: str) -> list[str]:
    """The package and its subpackages that hold files of Python, by path."""
    return sorted({str(path.parent.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")})


def _section(folder: str) -> str:
    rows = "".join(f"| `{path.name}` | {_sentence(path)} |\n" for path in _files(folder))
    return f"\n### {folder}/\n\n| file | what it is for |\n|---|---|\n{rows}"


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def _sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def rewritten(page: str) -> str:
    """The page with its list of files as the tree is now."""
    return page.partition(MARK)[0] + MARK + listed()


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
