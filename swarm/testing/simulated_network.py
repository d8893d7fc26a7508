"""SimulatedNetwork: board and questions of thousands of peers on virtual time, with partitions.

Lighter than MemoryWorld: no streams, one table of records for each side of a partition. What is
asked, read and published is counted, for that is what a real network would have to carry.
"""

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TypeVar

from swarm.dht.board import keys_to_publish
from swarm.errors import Deadline, PeerLost
from swarm.records import Record, record_of_map, record_to_list
from swarm.testing.questions_only import QuestionsOnly
from swarm.trust.network_clock import CLOCK

R = TypeVar("R", bound=Record)
Table = dict[str, tuple[Record, float]]  # of one kind: record and expiration by peer
BOARD_SECONDS = 0.2  # for a search of the board
NEVER = float("-inf")


@dataclass
class Traffic:
    """What was sent since the swarm began."""

    questions: Counter[str] = field(default_factory=Counter)  # by name
    answered: Counter[str] = field(default_factory=Counter)  # questions by the peer asked
    reads: Counter[str] = field(default_factory=Counter)  # of the board, by kind of record
    records_read: int = 0
    signatures: int = 0  # a record is signed for each key that it stands under


class SimulatedNetwork:
    """Who is there, who is cut off, who stands still, and every record."""

    def __init__(self) -> None:
        self.lines: dict[str, SimulatedLine] = {}
        self.paused_until: dict[str, float] = {}
        self.traffic = Traffic()
        self._side_of: dict[str, int] = {}
        self._tables: list[dict[type[Record], Table]] = [defaultdict(dict)]

    def part(self, peers: set[str]) -> None:
        """Cut these peers off from all others; each side keeps the records that it has."""
        self.heal()
        self._side_of = dict.fromkeys(peers, 1)
        copy = {kind: dict(table) for kind, table in self._tables[0].items()}
        self._tables.append(defaultdict(dict, copy))

    def heal(self) -> None:
        """Join both sides; of two records of one peer the one that expires later is kept."""
        self._side_of = {}
        for tables in self._tables[1:]:
            for kind, table in tables.items():
                for peer, (record, expiration) in table.items():
                    _keep(self._tables[0][kind], peer, record, expiration)
        del self._tables[1:]

    def side_of(self, peer: str) -> int:
        """The side of the partition on which a peer is; 0 is that of most."""
        return self._side_of.get(peer, 0)

    def is_paused(self, peer: str) -> bool:
        """Whether a peer stands still."""
        return asyncio.get_running_loop().time() < self.paused_until.get(peer, NEVER)

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

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """Show a record as it comes out of its encoding."""
        network, kind = self._network, type(record)
        await network.wait_out_pause(self.peer)
        await asyncio.sleep(BOARD_SECONDS)
        table = network.table(self.peer, kind)
        ttl = kind.TTL_SECONDS if ttl_seconds is None else min(ttl_seconds, kind.TTL_SECONDS)
        before = table.get(self.peer)
        expiration = max(CLOCK.now() + ttl, before[1] + 0.001 if before else 0.0)
        copy = record_of_map(kind, record_to_list(record))
        network.traffic.signatures += len(keys_to_publish("", kind, self.peer, len(table)))
        _keep(table, self.peer, copy, expiration)

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        """The live records of a kind by peer."""
        network = self._network
        await network.wait_out_pause(self.peer)
        await asyncio.sleep(BOARD_SECONDS)
        table, now = network.table(self.peer, kind), CLOCK.now()
        found = {
            peer: record
            for peer, (record, expiration) in table.items()
            if expiration > now and isinstance(record, kind)
        }
        if len(found) < len(table):
            self._sweep(table, now)
        network.traffic.reads[kind.KEY] += 1
        network.traffic.records_read += len(found)
        return found

    def _sweep(self, table: Table, now: float) -> None:
        """Forget what ended a while ago, whosever clock is right."""
        for peer in [peer for peer, (_, ends) in table.items() if ends < now - 60.0]:
            del table[peer]

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


def _keep(table: Table, peer: str, record: Record, expiration: float) -> None:
    before = table.get(peer)
    if before is None or before[1] < expiration:
        table[peer] = record, expiration
