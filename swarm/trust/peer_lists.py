"""PeerLists: whom a host bans and, if it says so, the only peers that it speaks with.

Both come from flags and from files, one peer id a line, which are read again when they change. A
file that cannot be read or has a slip in it changes nothing until it is mended: no ban is lost.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from swarm.errors import BadInput
from swarm.trust.identity import public_key_of

logger = logging.getLogger(__name__)

BAN_FILE, ALLOW_FILE = "banned", "allowed"  # in the state folder
LOOK_SECONDS = 1.0  # between looks at the files
FILE_CAP = 1 << 20  # bytes: some 19,000 peers


class PeerLists:
    """Says of a peer why we do not speak with it; the own peer is none of its business."""

    def __init__(
        self,
        banned: Iterable[str] = (),
        allowed: Iterable[str] = (),
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files of a folder; raises BadInput if one is there that cannot be used."""
        self._clock = clock
        self._banned = _PeerFile(banned, folder and folder / BAN_FILE)
        self._allowed = _PeerFile(allowed, folder and folder / ALLOW_FILE)
        self._looked_at = clock()

    def problem_with(self, peer: str, kin: Collection[str] | None = ()) -> str:
        """Why we do not speak with a peer; empty if we do.

        What is said of its kin, the other peers of its machine and the machine, is said of it. With
        None that is not known yet, and who may turn out to be allowed is not refused.
        """
        self._look()
        ids = {peer, *(kin or ())}
        if not ids.isdisjoint(self._banned.peers):
            return "This host has banned the peer."
        if not self._allowed.is_given or kin is None or not ids.isdisjoint(self._allowed.peers):
            return ""
        return "This host speaks only with peers that it has allowed."

    def _look(self) -> None:
        if self._clock() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        for each in (self._banned, self._allowed):
            each.read_again()


class _PeerFile:
    """The peers of flags and of a file; a file that is there counts even if it names nobody."""

    def __init__(self, named: Iterable[str], path: Path | None) -> None:
        self._named = frozenset(map(peer_id, named))
        self._path = path
        self._stamp = self._stamp_now()
        self._read = self._peers_in_file() if self._stamp else frozenset()

    @property
    def peers(self) -> frozenset[str]:
        return self._named | self._read

    @property
    def is_given(self) -> bool:
        return bool(self._named) or self._stamp is not None

    def read_again(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read = self._peers_in_file() if stamp else frozenset()
        except BadInput as error:
            logger.warning("what was read of it before still counts: %s", error)
        else:
            logger.info("%s names %d peers now", self._path, len(self._read))

    def _stamp_now(self) -> tuple[int, int] | None:
        """What changes when the file does; None if there is none."""
        try:
            found = self._path.stat() if self._path else None
        except FileNotFoundError:
            return None
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size) if found else None

    def _peers_in_file(self) -> frozenset[str]:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_CAP + 1).decode()
        except (OSError, ValueError) as error:
            raise BadInput(f"Cannot read {self._path}: {error}.", "Give a text file.") from error
        if len(text) > FILE_CAP:
            raise BadInput(f"{self._path} is too long.", f"Keep it below {FILE_CAP} bytes.")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return frozenset(peer_id(line) for line in lines if line)


def peer_id(text: str, where: str = "") -> str:
    """The peer id that a person has written; raises BadInput."""
    peer = text.strip()
    try:
        public_key_of(peer)
    except ValueError as error:
        raise BadInput(
            f"{where}{peer[:64]!r} is not the id of a peer.", "`swarm status --json` shows ids."
        ) from error
    return peer
