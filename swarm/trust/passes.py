"""Passes: what peers of a certified swarm have shown lately; kept on the disk for `swarm revoke`.

Who revokes names a peer, and the register a machine: only the pass that the peer has shown says
which one that is. So passes outlive a restart, and no machine can crowd out those of others.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path

import msgpack

from swarm.state_folder import write_private
from swarm.trust.membership import PASS_CAP, Pass, pass_of

PASSES_CAP = 4096  # of all peers, those seen last
MACHINE_CAP = 64  # of one machine, which may make as many ids as it likes
KEPT_CAP, KEPT_OF_MACHINE = 1024, 4  # on the disk
FILE_CAP = KEPT_CAP * (PASS_CAP + 8)


class Passes:
    """Passes by peer, the latest last; every one was read, and so is genuine."""

    def __init__(self, swarm: str, path: Path | None = None) -> None:
        """With those that a program of this machine has kept before."""
        self._swarm = swarm
        self._path = path
        self._seen: OrderedDict[str, Pass] = OrderedDict()
        self._of_machine: dict[str, OrderedDict[str, None]] = {}
        self._is_kept = True  # nothing is new
        self._remembered: set[str] = set()  # peers that have not shown up since we started
        for each in self._read():
            self.note(each)
        self._is_kept, self._remembered = True, set(self._seen)

    def note(self, found: Pass) -> None:
        """A peer has shown its pass."""
        peer, machine = found.chain.subject, found.machine
        if known := self._seen.get(peer):
            self._forget(known)
        if known is None or known.data != found.data:
            self._is_kept = False
        self._seen[peer] = found
        self._remembered.discard(peer)
        of_machine = self._of_machine.setdefault(machine, OrderedDict())
        of_machine[peer] = None
        if len(of_machine) > MACHINE_CAP:
            self._forget(self._seen[next(iter(of_machine))])
        if len(self._seen) > PASSES_CAP:
            self._forget(next(iter(self._seen.values())))

    def get(self, peer: str) -> Pass | None:
        """What a peer has shown last; None if nothing."""
        return self._seen.get(peer)

    def latest_first(self) -> Iterable[Pass]:
        """Those of peers that may be there: they have shown up since we started."""
        there = ((p, found) for p, found in self._seen.items() if p not in self._remembered)
        return reversed([found for _, found in there])

    def kin_of(self, peer: str) -> Collection[str] | None:
        """The machine of a peer, and all peers of it that were seen here; None if it was not."""
        found = self._seen.get(peer)
        return {found.machine, *self._of_machine[found.machine]} if found else None

    def machine_named(self, peer_or_machine: str) -> str:
        """The machine of a peer, or of that id itself; empty if neither was seen here."""
        if found := self._seen.get(peer_or_machine):
            return found.machine
        return peer_or_machine if peer_or_machine in self._of_machine else ""

    def place_of(self, machine: str) -> int:
        """How far a machine is from the founder, by what its peers have shown; 0 if unknown."""
        peers = self._of_machine.get(machine, ())
        return min((self._seen[peer].chain.peers.index(machine) for peer in peers), default=0)

    def take_news(self) -> tuple[Pass, ...]:
        """What there is to write: all of it if something is new, else nothing."""
        if self._path is None or self._is_kept:
            return ()
        self._is_kept = True
        return tuple(self._seen.values())

    def write(self, news: Iterable[Pass]) -> None:
        """Keep the latest of each machine, beside what other programs kept; raises OSError."""
        assert self._path is not None
        merged = Passes(self._swarm)
        for each in (*self._read(), *news):
            merged.note(each)
        kept: list[bytes] = []
        for peers in merged._of_machine.values():
            kept += [merged._seen[peer].data for peer in list(peers)[-KEPT_OF_MACHINE:]]
        latest = {each.data: number for number, each in enumerate(merged._seen.values())}
        kept = sorted(kept, key=latest.__getitem__)[-KEPT_CAP:]
        write_private(self._path, msgpack.packb(kept))

    def _read(self) -> list[Pass]:
        """What stands in the file; what is damaged there says nothing."""
        if self._path is None:
            return []
        try:
            with self._path.open("rb") as file:
                values = msgpack.unpackb(file.read(FILE_CAP))
        except (OSError, ValueError, msgpack.UnpackException):
            return []
        given = values if isinstance(values, list) else []
        found = [pass_of(self._swarm, each) for each in given if isinstance(each, bytes)]
        return [each for each in found if each is not None]

    def _forget(self, found: Pass) -> None:
        peer, machine = found.chain.subject, found.machine
        del self._seen[peer]
        self._remembered.discard(peer)
        of_machine = self._of_machine[machine]
        del of_machine[peer]
        if not of_machine:
            del self._of_machine[machine]
