"""StateFolder: what nodes and commands of one user remember about the swarm that they hosted."""

import json
from contextlib import suppress
from pathlib import Path

LAST_MODEL = "last_model"  # which folder the swarm hosted last serves: on this machine only
FOLDER_MARK = "./"  # before the name of a model that is a folder of its host, and no hub id


def shared_name(folder: Path, chosen: str = "") -> str:
    """What others call a model folder: never the path, which says whose home it is in."""
    return FOLDER_MARK + (chosen or folder.resolve().name)


def title_of(model: str) -> str:
    """A model's name as people read it."""
    return model.removeprefix(FOLDER_MARK)


def remember_model(state: Path, swarm: str, folder: Path) -> None:
    """Let commands of this user find the folder that a swarm of theirs serves."""
    path = state / LAST_MODEL
    with suppress(OSError):  # without it they ask the node, as others do
        path.touch(mode=0o600)
        path.write_text(json.dumps([swarm, str(folder.resolve())]), encoding="utf-8")


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
