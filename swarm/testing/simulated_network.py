"""SimulatedNetwork: board and questions of thousands of peers on virtual time, with partitions.

Lighter than MemoryWorld: no streams, one table of records for each side of a partition. What is
asked, read and published is counted, for that is what a real network would have to carry.
"""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar, cast

from swarm.dht.board import keys_to_publish
from swarm.errors import Deadline, PeerLost
from swarm.records import KINDS, Record, record_of_map, record_to_list
from swarm.testing.questions_only import QuestionsOnly
from swarm.trust.network_clock import CLOCK

R = TypeVar("R", bound=Record)
BOARD_SECONDS = 0.2  # for a search of the board
ENDED_SECONDS = 5.0  # that a record is kept after its end, whosever clock is right


@dataclass
class Traffic:
    """What was sent since the swarm began."""

    questions: Counter[str] = field(default_factory=Counter)  # by name
    answered: Counter[str] = field(default_factory=Counter)  # questions by the peer asked
    reads: Counter[str] = field(default_factory=Counter)  # of the board, by kind of record
    records_read: int = 0
    signatures: int = 0  # a record is signed for each key that it stands under


class Table:
    """The records of one kind."""

    def __init__(self, records: dict[str, Record], ends: dict[str, float]) -> None:
        self.records = records
        self.ends = ends  # when they expire
        self._first_end = min(ends.values(), default=math.inf)  # or earlier

    def __len__(self) -> int:
        return len(self.records)

    def copy(self) -> "Table":
        """What one side of a partition goes on with."""
        return Table(dict(self.records), dict(self.ends))

    def keep(self, peer: str, record: Record, expiration: float) -> None:
        """Of two records of one peer that which expires later."""
        if self.ends.get(peer, -math.inf) < expiration:
            self.records[peer], self.ends[peer] = record, expiration
            self._first_end = min(self._first_end, expiration)

    def join(self, other: "Table") -> None:
        """Keep what another table has."""
        for peer, record in other.records.items():
            self.keep(peer, record, other.ends[peer])

    def live(self, now: float) -> dict[str, Record]:
        """What is not over by somebody's clock."""
        if now < self._first_end:
            return dict(self.records)
        for peer in [peer for peer, end in self.ends.items() if end < now - ENDED_SECONDS]:
            del self.records[peer], self.ends[peer]
        self._first_end = min(self.ends.values(), default=math.inf)
        return {peer: record for peer, record in self.records.items() if self.ends[peer] > now}


class SimulatedNetwork:
    """Who is there, who is cut off, who stands still, and every record."""

    def __init__(self) -> None:
        self.lines: dict[str, SimulatedLine] = {}
        self.paused_until: dict[str, float] = {}
        self.traffic = Traffic()
        self._side_of: dict[str, int] = {}
        self._tables: list[dict[type[Record], Table]] = [{kind: Table({}, {}) for kind in KINDS}]

    def part(self, peers: set[str]) -> None:
        """Cut these peers off from all others; each side keeps the records that it has."""
        self.heal()
        self._side_of = dict.fromkeys(peers, 1)
        self._tables.append({kind: table.copy() for kind, table in self._tables[0].items()})

    def heal(self) -> None:
        """Join both sides; of two records of one peer the one that expires later is kept."""
        self._side_of = {}
        for tables in self._tables[1:]:
            for kind, table in tables.items():
                self._tables[0][kind].join(table)
        del self._tables[1:]

    def side_of(self, peer: str) -> int:
        """The side of the partition on which a peer is; 0 is that of most."""
        return self._side_of.get(peer, 0) if self._side_of else 0

    def is_paused(self, peer: str) -> bool:
        """Whether a peer stands still."""
        until = self.paused_until.get(peer)
        return until is not None and asyncio.get_running_loop().time() < until

    async def wait_out_pause(self, peer: str) -> None:
        """Go on when the peer does: called by whatever it begins."""
        while self.is_paused(peer):
            left = self.paused_until[peer] - asyncio.get_running_loop().time()
            await asyncio.sleep(left)

    def table(self, peer: str, kind: type[Record]) -> Table:
        """The records of a kind as a peer sees them."""
        return self._tables[self.side_of(peer)][kind]


class SimulatedBoard:
    """The Board of one peer; a restart makes another one."""

    def __init__(self, network: SimulatedNetwork, peer: str) -> None:
        self.peer = peer
        self._network = network
        self._said: dict[type[Record], tuple[Record, Record]] = {}  # and what others read of it

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """Show a record as it comes out of its encoding."""
        network, kind = self._network, type(record)
        if network.is_paused(self.peer):
            await network.wait_out_pause(self.peer)
        await asyncio.sleep(BOARD_SECONDS)
        table = network.table(self.peer, kind)
        ttl = kind.TTL_SECONDS if ttl_seconds is None else min(ttl_seconds, kind.TTL_SECONDS)
        expiration = max(CLOCK.now() + ttl, table.ends.get(self.peer, 0.0) + 0.001)
        network.traffic.signatures += len(keys_to_publish("", kind, self.peer, len(table)))
        table.keep(self.peer, self._encoded(record), expiration)

    def _encoded(self, record: Record) -> Record:
        """A record as it comes out of its encoding."""
        kind = type(record)
        said, copy = self._said.get(kind, (None, record))
        if record != said:
            copy = record_of_map(kind, record_to_list(record))
            self._said[kind] = record, copy
        return copy

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        """The live records of a kind by peer."""
        network = self._network
        if network.is_paused(self.peer):
            await network.wait_out_pause(self.peer)
        await asyncio.sleep(BOARD_SECONDS)
        found = network.table(self.peer, kind).live(CLOCK.now())
        network.traffic.reads[kind.KEY] += 1
        network.traffic.records_read += len(found)
        return cast("dict[str, R]", found)

    async def close(self) -> None:
        """Nothing is held open."""


class SimulatedLine(QuestionsOnly):
    """The Channel of one peer; a restart makes another one."""

    def __init__(self, network: SimulatedNetwork, peer: str) -> None:
        super().__init__(peer)
        self._network = network
        network.lines[peer] = self

    async def ask(
        self, peer: str, name: str, payload: bytes, *, timeout_seconds: float = 5.0
    ) -> bytes:
        """Ask a peer; raises PeerLost, PeerRefused, Deadline."""
        network = self._network
        network.traffic.questions[name] += 1
        network.traffic.answered[peer] += 1
        if network.is_paused(self.peer):
            await network.wait_out_pause(self.peer)
        if network.side_of(peer) != network.side_of(self.peer) or network.is_paused(peer):
            await asyncio.sleep(timeout_seconds)
            raise Deadline("It does not answer.", peer=peer)
        other = network.lines.get(peer)
        if other is None:
            raise PeerLost("It is not there.", peer=peer)
        return await other.answered(self.peer, name, payload)

    def round_trip_seconds(self, peer: str) -> float | None:
        """Answers take no time: it is counted how many there are."""
        return 0.0

    async def close(self) -> None:
        """Be gone."""
        if self._network.lines.get(self.peer) is self:
            del self._network.lines[self.peer]
