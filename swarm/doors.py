"""Doors: open a room by name when called, and notice a script whose own name hides a room."""

import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from swarm.errors import BadInput

HOME = Path(__file__).resolve().parent.parent  # where the rooms lie beside this package


def open_room(name: str) -> ModuleType:
    """Import a room or one of its files, such as "node.main"; raises BadInput if hidden."""
    room = name.partition(".")[0]
    loaded = sys.modules.get(room)
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(room)
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != HOME / room / "__init__.py":
        raise BadInput(
            f"{found or 'Another module'} hides Swarm's own package {room!r}.",
            f"Rename it: no script beside a program that uses Swarm may be called {room}.py.",
        )
    gc.disable()  # what is imported stays: to look for garbage in it costs a tenth of the time
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()


def leave(code: int) -> NoReturn:
    """End the process at once: everything is closed, and taking torch apart costs seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
