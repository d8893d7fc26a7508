"""Board: the seam where peers publish signed records for all, and the keys they stand under."""

import hashlib
from collections.abc import Iterator
from typing import Protocol, TypeVar

from swarm.records import KINDS, Record

R = TypeVar("R", bound=Record)

SHARDS = 16  # of a crowded key, by the first hex digit of the peer id's hash
CROWD = 500  # peers from which on records stand under the shards
SAMPLE = 200  # peers of a crowd that stand under the plain key too
SEARCH_FROM = 50  # peers under the plain key from which on readers look into the shards
SKEW_SECONDS = 3.0  # clocks may differ by this much; hivemind keeps peers further off out


class Board(Protocol):
    """What a package needs of the DHT; `DhtBoard` is real, `MemoryBoard` its twin."""

    peer: str

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """Sign a record and show it until its time is over or a later one of ours replaces it.

        Raises LocalProtocolError for a record that breaks the rules, Unreachable if nobody took it.
        """

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        """The live records of a kind by the peer that signed them; raises Unreachable.

        With `latest` false a copy that is some seconds old may answer, much sooner.
        """

    async def close(self) -> None:
        """Leave the board."""


def shard_of(peer: str) -> str:
    """The shard that belongs to a peer. (A hash: Ed25519 peer ids all begin with 12D3KooW.)"""
    return _digest(peer)[0]


def plain_key(swarm: str, kind: type[Record]) -> str:
    """The key of a kind in a swarm of ordinary size."""
    return f"{swarm}/{kind.KEY}"


def keys_to_publish(swarm: str, kind: type[Record], peer: str, peers: int) -> list[str]:
    """Where a peer publishes when it sees `peers` peers with a record of that kind.

    Below CROWD everybody stands under the plain key; from CROWD on under the shards, and about
    SAMPLE of them under the plain key too, so that readers see there that shards are in use. Where
    somebody stands never changes how many are seen, so the rule cannot swing.
    """
    plain = plain_key(swarm, kind)
    if not kind.SHARDED or peers < CROWD:
        return [plain]
    shard = f"{plain}/{shard_of(peer)}"
    is_sampled = int(_digest(peer)[1:9], 16) / 16**8 < SAMPLE / peers
    return [shard, plain] if is_sampled else [shard]


def has_shards(kind: type[Record], peers_in_plain_key: int) -> bool:
    """Whether a reader has to look into the shards too."""
    return kind.SHARDED and peers_in_plain_key >= SEARCH_FROM


def shard_keys(swarm: str, kind: type[Record]) -> list[str]:
    """The keys of all shards of a kind; empty for a kind that is never sharded."""
    if not kind.SHARDED:
        return []
    return [f"{swarm}/{kind.KEY}/{digit:x}" for digit in range(SHARDS)]


def known_keys(swarm: str) -> Iterator[tuple[str, type[Record]]]:
    """Every key of a swarm with the kind of its records; no other key is legal."""
    for kind in KINDS:
        yield plain_key(swarm, kind), kind
        yield from ((key, kind) for key in shard_keys(swarm, kind))


def _digest(peer: str) -> str:
    return hashlib.sha256(peer.encode()).hexdigest()
