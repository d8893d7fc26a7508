"""Entry points: our packages are found beside `swarm`, and names of the caller stay theirs."""

import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from swarm.commands.entry_points import import_package
from swarm.commands.package_finder import HOME, PACKAGES, command_of, is_ours
from swarm.errors import BadInput

NAMES = ("client.py", "node.py", "planner.py")


def run(*command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that stands first on its path, as a person's own folder does."""
    path = os.pathsep.join((str(folder), str(HOME)))
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | more,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write(folder: Path, *lines: str, name: str = "script.py") -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return name


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder with files that have the names of our packages."""
    for name in NAMES:
        write(tmp_path, f"WORD = 'theirs: {name}'", name=name)
    return tmp_path


def test_from_swarm_import_client_is_import_client(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        "from swarm import client",
        "import client as same, swarm.client",
        "assert client is same is swarm.client",
        "assert client.generate and client.Client",
    )
    done = run(script, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_may_be_called_client(tmp_path: Path) -> None:
    script = write(
        tmp_path, "from swarm import client", "print(client.generate.__module__)", name="client.py"
    )
    done = run(script, folder=tmp_path)
    assert (done.stdout, done.stderr) == ("client.api\n", "")


BORROW = (  # the lightest one
    "from swarm.commands.entry_points import import_package_privately as ours_of;"
    " ours = ours_of('planner')"
)


def test_a_module_of_the_caller_stays_theirs_whichever_is_imported_first(shadows: Path) -> None:
    theirs = "import planner as theirs"
    for first, second in ((theirs, BORROW), (BORROW, theirs)):
        code = f"{first}\n{second}\nprint(theirs.WORD, ours.__doc__)"
        done = run("-c", code, folder=shadows)
        assert (
            done.stdout
            == "theirs: planner.py Facts in, plan out: no network, no clock, no torch.\n"
        )


def test_a_module_with_our_name_may_wrap_ours(tmp_path: Path) -> None:
    write(tmp_path, BORROW, "WORD = ours.__doc__", name="planner.py")
    done = run("-c", "import planner; import planner as same; print(same.WORD)", folder=tmp_path)
    assert (done.stdout[:8], done.stderr) == ("Facts in", "")


def test_a_folder_with_our_names_hides_no_command(shadows: Path) -> None:
    done = run("-m", "swarm.node", "--host", "--threads", "0", folder=shadows)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --threads 0 ")


def test_a_new_process_finds_ours_from_any_folder(shadows: Path) -> None:
    command = command_of("planner.cli.text_chart")
    assert command[0] == sys.executable
    done = run(*command[1:], folder=shadows, PYTHONPATH=str(shadows))
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_swarm_is_the_command(tmp_path: Path) -> None:
    done = run("-m", "swarm", "--version", folder=tmp_path)
    assert done.stdout.startswith("swarm ")


def test_a_foreign_module_under_our_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = types.ModuleType("planner")
    stranger.__file__ = "/elsewhere/planner.py"
    stranger.__spec__ = ModuleSpec("planner", None, origin=stranger.__file__)
    monkeypatch.setitem(sys.modules, "planner", stranger)
    with pytest.raises(BadInput, match=r"/elsewhere/planner\.py was loaded in place of"):
        import_package("planner.cli.text_chart")


def test_only_what_lies_beside_swarm_is_ours() -> None:
    for name in PACKAGES:
        assert is_ours(ModuleSpec(name, None, origin=str(HOME / name / "__init__.py")))
        assert not is_ours(ModuleSpec(name, None, origin=f"/elsewhere/{name}/__init__.py"))
        assert not is_ours(ModuleSpec(name, None))  # a folder without __init__.py
    assert not is_ours(None)
