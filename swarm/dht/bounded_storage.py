"""BoundedStorage: the records that a node keeps for others, in the hands of strangers.

One record for each peer and key, a cap on peers per key, and two faults of hivemind's less: an
older record cannot cut a newer one short, and a search does not write into what is stored.

When a key is full, somebody goes: of the network that has most records there, first one that
others brought, then one that is young, then by a lot that nobody can foresee. So a flood of fresh
identities takes its places from itself and not from peers that have been here for a while, nor
from those of other networks.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

PEERS_CAP = 1500  # under one key: 1,500 records of 2 KiB stay below hivemind's 4 MiB answers
TENURE_SECONDS = 60.0  # after which a peer that renews its record is no newcomer
SLACK = 64  # standings of peers whose records have expired, before they are swept out

Origin = tuple[str, bool]  # network of the sender, and whether it is the record's own peer
UNKNOWN: Origin = ("", False)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the record of a peer came from, and since when there is one."""

    network: str
    is_direct: bool  # its own peer brought it
    since: float  # monotonic seconds


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """Keeps the record of each peer under each key that expires last, for so many peers."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, salt: bytes | None = None
    ) -> None:
        super().__init__()
        self._clock = clock
        self._salt = os.urandom(16) if salt is None else salt
        self._standings: dict[Any, dict[Any, Standing]] = {}

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """Keep a record of unknown origin."""
        return self.store_from(key, subkey, ValueWithExpiration(value, expiration_time), UNKNOWN)

    def store_from(
        self, key: Any, subkey: Any, record: ValueWithExpiration, origin: Origin
    ) -> bool:
        """Keep a record unless a later one of its peer is there, or others deserve the place."""
        value, expiration = record
        entries = self._entries(key)
        if entries is None:
            entries = DictionaryDHTValue()
            self._standings.pop(key, None)
        known = entries.get(subkey)
        if known is not None and known.expiration_time >= expiration:
            return bool(known.value == value)  # a replica may have been quicker than its author
        standings = self._standings.setdefault(key, {})
        standing = self._standing(standings.get(subkey) if known else None, origin)
        if known is None and not self._has_room(entries, standings, subkey, standing):
            return False
        if not entries.store(subkey, value, expiration):
            return False
        standings[subkey] = standing
        if expiration >= entries.latest_expiration_time or key not in self.data:
            super().store(key, entries, entries.latest_expiration_time)
        return True

    def holds(self, key: Any, subkey: Any, value: bytes, expiration: float) -> bool:
        """Whether exactly this record is there."""
        entries = self._entries(key)
        known = entries.get(subkey) if entries is not None else None
        return known is not None and (known.value, known.expiration_time) == (value, expiration)

    def get(self, key: Any) -> Any:
        """A copy of what is stored, for searches to merge into."""
        item = super().get(key)
        if item is None or not isinstance(item.value, DictionaryDHTValue):
            return item
        copy = DictionaryDHTValue()
        for subkey, (value, expiration) in item.value.items():
            copy.store(subkey, value, expiration)
        return ValueWithExpiration(copy, item.expiration_time)

    def sweep(self, is_legal: Callable[[Any, Any, bytes, float], bool]) -> None:
        """Drop every record that is not legal (any more)."""
        for key in list(self.data):
            entries = self._entries(key)
            if entries is None:
                continue
            for subkey, (value, expiration) in list(entries.items()):
                if not is_legal(key, subkey, value, expiration):
                    del entries[subkey]

    def _entries(self, key: Any) -> DictionaryDHTValue | None:
        item = super().get(key)
        return item.value if item and isinstance(item.value, DictionaryDHTValue) else None

    def _standing(self, before: Standing | None, origin: Origin) -> Standing:
        network, is_direct = origin
        if before is None:
            return Standing(network, is_direct, self._clock())
        if before.is_direct and not is_direct:
            return before
        return replace(before, network=network, is_direct=is_direct)

    def _has_room(
        self,
        entries: DictionaryDHTValue,
        standings: dict[Any, Standing],
        newcomer: Any,
        standing: Standing,
    ) -> bool:
        """Whether a newcomer may stay; if need be somebody else goes."""
        count = len(entries)
        if len(standings) > count + SLACK:
            for gone in [peer for peer in standings if peer not in entries]:
                del standings[gone]
        if count < PEERS_CAP:
            return True
        unknown = Standing(*UNKNOWN, self._clock())
        living = {peer: standings.get(peer, unknown) for peer, _ in entries.items()}
        loser = self._loser({**living, newcomer: standing})
        if loser == newcomer:
            return False
        del entries[loser]
        standings.pop(loser, None)
        return True

    def _loser(self, standings: dict[Any, Standing]) -> Any:
        sizes = Counter(standing.network for standing in standings.values())
        (crowd, _), *_ = sizes.most_common(1)
        now = self._clock()

        def worth(peer: Any) -> tuple[bool, bool, bytes]:
            standing = standings[peer]
            is_old = now - standing.since >= TENURE_SECONDS
            return standing.is_direct, is_old, self._lot(peer)

        return min((peer for peer in standings if standings[peer].network == crowd), key=worth)

    def _lot(self, peer: Any) -> bytes:
        return hashlib.sha256(self._salt + str(peer).encode()).digest()
