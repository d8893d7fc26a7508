"""An in-memory network for the real DHT code: boards, protocols and hivemind's nodes, no daemon."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hivemind.p2p import PeerID

from swarm.dht.bootstrap import KnownPeers
from swarm.dht.dht_board import DhtBoard
from swarm.trust.door import Door
from swarm.trust.identity import Identity, swarm_id


class MemoryP2P:
    """The part of hivemind's P2P that its DHT uses: handlers by name, and calls to them."""

    def __init__(self, world: "DhtWorld", peer: str) -> None:
        self.peer_id = PeerID.from_base58(peer)
        self.handlers: dict[str, tuple[Callable[..., Any], Any]] = {}
        self._world = world

    async def add_protobuf_handler(
        self, name: str, handler: Callable[..., Any], kind: Any, **_: Any
    ) -> None:
        self.handlers[name] = handler, kind

    async def remove_protobuf_handler(self, name: str, **_: Any) -> None:
        self.handlers.pop(name, None)

    async def call_protobuf_handler(
        self, peer: PeerID, name: str, request: Any, answer_kind: Any
    ) -> Any:
        other = self._world.peers.get(str(peer))
        if other is None or name not in other.handlers:
            raise ConnectionError(f"nobody answers {name} at {peer}")
        handler, kind = other.handlers[name]
        context = SimpleNamespace(remote_id=self.peer_id)
        await asyncio.sleep(0)
        answer = await handler(kind.FromString(request.SerializeToString()), context)
        return answer_kind.FromString(answer.SerializeToString())


@dataclass
class MemoryProcess:
    """The part of a P2PDaemon that a board uses."""

    p2p: Any
    peer: str
    world: "DhtWorld"
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def door(self) -> Door:
        return self.world.doors.get(self.peer, Door(self.peer))

    async def connected(self) -> dict[str, tuple[str, ...]]:
        return {peer: (self.world.address_of(peer),) for peer in self.world.peers}

    async def connect(self, address: str) -> None:
        pass

    async def problem_at(self, address: str) -> str:
        return ""

    def note_addresses(self, peer: str, addresses: Sequence[str]) -> None:
        pass


@dataclass
class DhtWorld:
    """Peers of one swarm; each in a network of its own unless a test says otherwise."""

    key: str = ""
    founder: Identity = field(default_factory=Identity.throwaway)
    peers: dict[str, MemoryP2P] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    doors: dict[str, Door] = field(default_factory=dict)  # of peers that refuse somebody

    @property
    def id(self) -> str:
        return swarm_id("test", self.founder.peer)

    def address_of(self, peer: str) -> str:
        host = self.hosts.get(peer, f"10.0.{list(self.peers).index(peer)}.1")
        return f"/ip4/{host}/tcp/4001/p2p/{peer}"

    def daemon(self, identity: Identity) -> Any:
        p2p = self.peers[identity.peer] = MemoryP2P(self, identity.peer)
        return MemoryProcess(p2p, identity.peer, self)

    async def board(self, identity: Identity | None = None, *, client: bool = False) -> DhtBoard:
        """A real board; the first one is the founder's."""
        known = tuple(self.address_of(peer) for peer in self.peers)[:3]
        who = identity or (Identity.throwaway() if self.peers else self.founder)
        daemon = self.daemon(who)
        return await DhtBoard.open(
            daemon, self.id, who, key=self.key, known=KnownPeers(known), client=client
        )
