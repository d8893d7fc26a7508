"""StateFolder: what nodes and commands of one user remember, and how secrets rest on the disk."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from swarm.errors import BadInput

LAST_INVITE = "last_invite"  # file in the state folder, written by nodes that join or host
LAST_MODEL = "last_model"  # which folder the swarm hosted last serves: on this machine only
SECRET_CAP = 16 * 1024  # bytes of a file with an invite or a key
STDIN = "-"
FOLDER_MARK = "./"  # before the name of a model that is a folder of its host, and no hub id


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's Swarm keeps its state: $SWARM_STATE, or the usual place."""
    named = environment.get("SWARM_STATE")
    if named:
        return Path(named).expanduser()
    base = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "swarm"


def own_environment() -> Mapping[str, str]:
    """This process's environment: read at the entry points only (plain calls, Client, commands)."""
    return os.environ


def shared_name(folder: Path, chosen: str = "") -> str:
    """What others call a model folder: never the path, which says whose home it is in."""
    return FOLDER_MARK + (chosen or folder.resolve().name)


def title_of(model: str) -> str:
    """A model's name as people read it."""
    return model.removeprefix(FOLDER_MARK)


def remember_model(state: Path, swarm: str, folder: Path) -> None:
    """Let commands of this user find the folder that a swarm of theirs serves."""
    known = json.dumps([swarm, str(folder.resolve())])
    with suppress(OSError):  # without it they ask the node, as others do
        write_private(state / LAST_MODEL, known.encode())


def local_name(state: Path, swarm: str, model: str) -> str:
    """The folder of a model that was hosted from here; else its name, as others know it."""
    try:
        found = json.loads((state / LAST_MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return model
    match found:
        case [str(hosted), str(folder)] if hosted == swarm and model.startswith(FOLDER_MARK):
            return folder if Path(folder).is_dir() else model
    return model


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can open; one that is there stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read: all of it, or not at all; raises OSError."""
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise


def read_secret(source: str) -> str:
    """What stands in a file, or on standard input for "-"; raises BadInput.

    So that a secret need not stand on a command line, which every user of a machine can see.
    """
    try:
        if source == STDIN:
            text = sys.stdin.read(SECRET_CAP)
        else:
            with Path(source).expanduser().open("rb") as file:
                text = file.read(SECRET_CAP).decode()
    except (OSError, ValueError) as error:
        raise BadInput(f"Cannot read {source}: {error}.", "Give a text file.") from error
    if not text.strip():
        raise BadInput(f"{source} is empty.", "Give a file that holds the secret.")
    return text.strip()
