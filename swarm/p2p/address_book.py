"""AddressBook: where the peers of a swarm were met lately; kept on the disk for the next start.

One file a swarm, shared by every node and client of a user: what is written is merged with what
others wrote meanwhile. Each address bears two times, and merging takes the later of each, so it
does not matter who writes first or how often.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from swarm.errors import BadInvite
from swarm.invites import peer_of_address
from swarm.p2p.addresses import by_peer
from swarm.state_folder import make_private_folder, write_private

FOLDER = "peers"  # in the state folder
KEPT_SECONDS = 14 * 86400.0
RENEWED_SECONDS = 3600.0  # a sighting so much later than the one on the disk is worth a write
PEERS_CAP = 256
ADDRESSES_CAP = 8  # of one peer
LENGTH_CAP = 300  # characters of an address
LOCK_TRIES, LOCK_SECONDS = 20, 0.1  # others write for milliseconds
FILE_CAP = 1 << 20  # bytes that are read at all
_ADDRESS = re.compile(r"/(ip4|ip6|dns[46]?)/[!-~]+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sighting:
    """When an address was last spoken of, and when a connection with it was last open."""

    told: float  # wall-clock seconds: by a record of its peer, or because it was used
    met: float = 0.0  # 0: never; we know it from hearsay

    @property
    def latest(self) -> float:
        """The last sign of life."""
        return max(self.told, self.met)

    def with_later(self, other: "Sighting | None") -> "Sighting":
        """The later of each time."""
        if other is None:
            return self
        return Sighting(max(self.told, other.told), max(self.met, other.met))


Sightings = dict[str, Sighting]  # by multiaddr with /p2p/<id>


class AddressBook:
    """Addresses of one swarm's peers; changed on the event loop, written now and then."""

    def __init__(
        self,
        path: Path | None,
        swarm: str,
        own: str = "",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._swarm, self._own, self._clock = path, swarm, own, clock
        self._known: Sightings = {}
        self._written: Sightings = {}
        self._has_failed = False  # to write

    @classmethod
    def open(
        cls, state: Path, swarm: str, own: str = "", *, clock: Callable[[], float] = time.time
    ) -> "AddressBook":
        """The book of a swarm in a state folder; what cannot be read is put aside."""
        name = hashlib.sha256(swarm.encode()).hexdigest()[:24]  # an invite may call it anything
        book = cls(state / FOLDER / f"{name}.json", swarm, own, clock=clock)
        book._written = book._bounded(book._read())
        book._known = dict(book._written)
        return book

    def note(self, peer: str, addresses: Iterable[str]) -> None:
        """A peer says that it is there; with or without its id at the end."""
        self._note(peer, addresses, Sighting(self._clock()))

    def note_met(self, peer: str, addresses: Iterable[str]) -> None:
        """A connection with a peer is open over these addresses, whoever dialed whom."""
        now = self._clock()
        self._note(peer, addresses, Sighting(now, now))

    def addresses(self, without: Collection[str] = ()) -> tuple[str, ...]:
        """What to try, the best first: each peer's first address, then the second ones."""
        rows = [
            addresses
            for peer, addresses in _ranked(self._bounded(self._known))
            if peer not in without and peer != self._own
        ]
        return tuple(filter(None, chain.from_iterable(zip_longest(*rows))))

    @property
    def is_due(self) -> bool:
        """Whether so much is new that it is worth a write."""
        return any(
            (before := self._written.get(address)) is None
            or sighting.latest - before.latest > RENEWED_SECONDS
            or (sighting.met and not before.met)
            for address, sighting in self._known.items()
        )

    async def write(self) -> None:
        """Merge with what others have written, and write that; failing is not fatal."""
        merged = await asyncio.to_thread(self._write, dict(self._known))
        if merged is not None:
            self._written = merged
            self._known = self._bounded(_merged(merged, self._known))

    def _write(self, known: Sightings) -> Sightings | None:
        if self._path is None:
            return self._bounded(known)
        try:
            make_private_folder(self._path.parent)
            with _locked(self._path):
                merged = self._bounded(_merged(self._read(), known))
                write_private(self._path, self._to_bytes(merged))
        except OSError as error:
            level = logging.DEBUG if self._has_failed else logging.WARNING  # said once in a row
            logger.log(level, "the address book is not written: %s", error)
            self._has_failed = True
            return None
        self._has_failed = False
        return merged

    def _note(self, peer: str, addresses: Iterable[str], sighting: Sighting) -> None:
        if peer == self._own:
            return
        for address in list(addresses)[:ADDRESSES_CAP]:
            full = address if address.endswith(f"/p2p/{peer}") else f"{address}/p2p/{peer}"
            if _is_address(full):
                self._known[full] = sighting.with_later(self._known.get(full))
        if len(self._known) > 2 * PEERS_CAP * ADDRESSES_CAP:
            self._known = self._bounded(self._known)

    def _bounded(self, sightings: Mapping[str, Sighting]) -> Sightings:
        """What is kept: nothing old, so many peers, so many addresses of each."""
        oldest = self._clock() - KEPT_SECONDS
        fresh = {each: seen for each, seen in sightings.items() if seen.latest > oldest}
        kept = chain.from_iterable(addresses for _, addresses in _ranked(fresh))
        return {address: fresh[address] for address in kept}

    def _read(self) -> Sightings:
        """What stands in the file, if it is one of ours."""
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_CAP + 1)
        except OSError:
            return {}
        try:
            return self._of_bytes(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("the address book is damaged, and begun anew: %s", error)
            with suppress(OSError):
                os.replace(self._path, self._path.with_suffix(".damaged"))
            return {}

    def _to_bytes(self, sightings: Sightings) -> bytes:
        rows = {each: [round(seen.told), round(seen.met)] for each, seen in sightings.items()}
        return json.dumps({"swarm": self._swarm, "addresses": rows}, indent=0).encode()

    def _of_bytes(self, data: bytes) -> Sightings:
        """Read what `_to_bytes` wrote; nothing is seen later than now; raises ValueError."""
        if len(data) > FILE_CAP:
            raise ValueError(f"it has more than {FILE_CAP} bytes")
        values, now = json.loads(data), self._clock()
        if values["swarm"] != self._swarm:
            raise ValueError("it is of another swarm")
        found = {
            address: Sighting(min(_seconds(told), now), min(_seconds(met), now))
            for address, (told, met) in values["addresses"].items()
        }
        return {address: seen for address, seen in found.items() if _is_address(address)}


def _ranked(sightings: Mapping[str, Sighting]) -> list[tuple[str, list[str]]]:
    """Peers and their addresses, those met most lately first; no more than the caps."""
    order = sorted(sightings, key=lambda each: (-sightings[each].met, -sightings[each].told, each))
    peers = list(by_peer(order).items())[:PEERS_CAP]
    return [(peer, found[:ADDRESSES_CAP]) for peer, found in peers]


def _merged(one: Mapping[str, Sighting], other: Mapping[str, Sighting]) -> Sightings:
    return dict(one) | {each: seen.with_later(one.get(each)) for each, seen in other.items()}


def _is_address(address: str) -> bool:
    if len(address) > LENGTH_CAP or not _ADDRESS.fullmatch(address):
        return False
    try:
        peer_of_address(address)
    except BadInvite:
        return False
    return True


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other programs from writing meanwhile; the file itself is replaced, so not that one."""
    with path.with_suffix(".lock").open("a") as lock:
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_SECONDS)
        else:
            raise BlockingIOError("another program holds it")
        yield
