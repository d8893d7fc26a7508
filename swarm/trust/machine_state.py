"""MachineState: a machine's key and memberships, in the state folder that its programs share."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import BadInput
from swarm.state_folder import make_private_folder, write_private
from swarm.trust.identity import Identity, load_identity
from swarm.trust.membership import Holding, holding_of
from swarm.trust.passes import Passes
from swarm.trust.register import Register

KEY_FILE, LOCK_FILE = "machine.key", "machine.lock"
FOLDER = "memberships"  # one file a swarm; its register and its peers' passes beside it


class MachineState:
    """What one machine knows of the certified swarms that it is in; every file is private."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def identity(self) -> Identity:
        """The machine's key, made at the first need; raises BadInput."""
        try:
            with self._locked():
                return load_identity(self._state / KEY_FILE)
        except OSError as error:
            raise BadInput(
                f"Cannot use the state folder {self._state}: {error.strerror or error}.",
                "Name a folder that you may write with --state.",
            ) from error

    def holding(self, swarm: str) -> Holding | None:
        """What certifies this machine in a swarm; None if nothing (genuine) does."""
        try:
            return holding_of(swarm, self._path(swarm).read_bytes())
        except OSError:
            return None

    def keep(self, swarm: str, holding: Holding) -> None:
        """Keep what certifies this machine; raises BadInput."""
        try:
            make_private_folder(self._state / FOLDER)
            write_private(self._path(swarm), holding.data)
        except OSError as error:
            raise BadInput(
                f"The certificate cannot be kept: {error.strerror or error}.", "Make room there."
            ) from error

    def register(self, swarm: str) -> Register:
        """What is known of revocations in a swarm."""
        return Register(swarm, self._path(swarm).with_suffix(".register"))

    def passes(self, swarm: str) -> Passes:
        """What peers of a swarm have shown to programs of this machine."""
        return Passes(swarm, self._path(swarm).with_suffix(".passes"))

    def _path(self, swarm: str) -> Path:
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in swarm)
        return self._state / FOLDER / f"{name}.holding"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One program at a time makes the key."""
        make_private_folder(self._state)
        with (self._state / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
