"""A certified swarm on this machine, over real libp2p and a real board: no models, no planner."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from swarm.dht.admissions import Admissions, certify_founder
from swarm.dht.bootstrap import KnownPeers
from swarm.network import Entry, HeldNetwork, hold_network
from swarm.p2p.p2pd_process import Network
from swarm.records import Relay
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Members
from swarm.trust.network_clock import CLOCK
from swarm.trust.tickets import sell

KEY = "a key that everybody knows who was ever in"
SECONDS = 120.0
ASK_SECONDS = 20.0


async def answer(_peer: str, _payload: bytes) -> bytes:
    return b"a secret"


@dataclass
class Node:
    """One node of the swarm, with what it does for newcomers."""

    held: HeldNetwork
    admissions: Admissions

    @property
    def peer(self) -> str:
        return self.held.daemon.peer

    @property
    def members(self) -> Members:
        assert self.held.members is not None
        return self.held.members

    async def asks(self, peer: str, name: str = "secret") -> bytes:
        return await self.held.channel.ask(peer, name, b"", timeout_seconds=ASK_SECONDS)


@dataclass
class World:
    """A certified swarm on this machine: its founder, and who joined."""

    folder: Path
    stack: AsyncExitStack
    founder: Identity
    addresses: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return swarm_id("home", self.founder.peer)

    async def node(self, name: str, ticket: bytes = b"", identity: Identity | None = None) -> Node:
        """Join as a machine whose state is in the folder of that name; raises as joining does."""
        network = Network(initial_peers=self.addresses)
        entry = Entry(known=KnownPeers(self.addresses), ticket=ticket, state=self.folder / name)
        identity = identity or Identity.throwaway()
        holding = hold_network(identity, network, self.id, KEY, entry)
        held = await self.stack.enter_async_context(holding)
        assert held.members is not None
        admissions = Admissions(held.members, held.lobby, held.channel, held.board)
        await held.lobby.open(admissions.admit, held.members)
        held.channel.answer("secret", answer)
        held.channel.listen(lambda *_: None, lambda *_: None)
        await held.board.publish(Relay([], 0.0, name))
        return Node(held, admissions)

    async def host(self) -> Node:
        """The founder's own."""
        state = self.folder / "host"
        state.mkdir()
        certify_founder(self.id, self.founder, state, state / "manifest")
        host = await self.node("host", identity=self.founder)
        self.addresses = await host.held.daemon.addresses()
        return host

    def ticket(self) -> bytes:
        """A new one, for any machine."""
        machines, now = MachineState(self.folder / "host"), CLOCK.now()
        holding = machines.holding(self.id)
        assert holding is not None
        made = max(now, machines.register(self.id).tickets_since + 1)
        return sell(self.id, (holding, machines.identity()), made, now + 3600, 0)

    def copied(self, name: str, fresh: str) -> str:
        """The state folder of a machine under another name, without its register."""
        shutil.copytree(self.folder / name, self.folder / fresh)
        for each in (self.folder / fresh).rglob("*.register"):
            each.unlink()
        return fresh


@asynccontextmanager
async def world_in(folder: Path) -> AsyncIterator[World]:
    async with asyncio.timeout(SECONDS), AsyncExitStack() as stack:
        yield World(folder, stack, Identity.throwaway())
