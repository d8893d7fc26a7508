"""Replicas: where a record goes, who took it, and whether they show it when asked again."""

import asyncio
import logging
import random
from typing import Any

from hivemind.dht.crypto import DHTRecord
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.dht.dht_protocol import BUCKET_SIZE, SwarmProtocol

SMALL_SWARM = 40  # peers known up to which all of them keep each record
STRAYS = 4  # copies far from the key in larger swarms, where nobody can have placed himself
ASKED_AGAIN = 2  # of those that took a record

logger = logging.getLogger(__name__)


class Replicas:
    """Stores a peer's own records at others and looks whether they are really there."""

    def __init__(self, node: DHTNode, peer: str) -> None:
        self._node = node
        self._protocol: SwarmProtocol = node.protocol
        self._peer = peer

    async def store(self, record: DHTRecord, *, confirmed: bool) -> bool:
        """Keep a record here and at others; whether it can be found there, if there are others.

        `confirmed` reads it back from some of those that took it.
        """
        key = DHTID.from_bytes(record.key)
        kept = ValueWithExpiration(record.value, record.expiration_time)
        self._protocol.storage.store_from(key, self._peer, kept, ("", True))
        others = await self._others(key)
        answers = await asyncio.gather(*(self._store_at(peer, key, record) for peer in others))
        took = [peer for peer, answer in zip(others, answers, strict=True) if answer]
        if not others or not (took and confirmed):
            return bool(took) or not others
        return await self._is_shown(key, record, took)

    async def _others(self, key: DHTID) -> list[PeerID]:
        """The peers nearest to a key and some that are not; all of a small swarm."""
        found = await self._node.find_nearest_nodes([key], k_nearest=BUCKET_SIZE, exclude_self=True)
        known = set(self._protocol.routing_table.uid_to_peer_id.values())
        near = set(found[key].values())
        if len(known) <= SMALL_SWARM:
            return list(near | known)
        far = list(known - near)
        return [*near, *random.sample(far, min(STRAYS, len(far)))]

    async def _store_at(self, peer: PeerID, key: DHTID, record: DHTRecord) -> bool:
        answer = await self._protocol.call_store(
            peer, [key], [record.value], record.expiration_time, subkeys=[self._peer]
        )
        return bool(answer) and all(answer)

    async def _is_shown(self, key: DHTID, record: DHTRecord, took: list[PeerID]) -> bool:
        random.shuffle(took)
        first, rest = took[:ASKED_AGAIN], took[ASKED_AGAIN:]
        for peers in (first, rest):
            shown = await asyncio.gather(*(self._shows(peer, key, record) for peer in peers))
            if any(shown):
                return True
        return False

    async def _shows(self, peer: PeerID, key: DHTID, record: DHTRecord) -> bool:
        answers = await self._protocol.call_find(peer, [key])
        if answers is None:  # lost meanwhile: that says nothing about what it keeps
            return False
        if _has(answers[key][0], self._peer, record):
            self._protocol.absolve(peer)
            return True
        logger.info("peer %s took a record and does not show it", peer)
        self._protocol.strike(peer)
        return False


def _has(item: Any, peer: str, record: DHTRecord) -> bool:
    entry = item.value.get(peer) if item else None
    return entry is not None and entry.expiration_time >= record.expiration_time
