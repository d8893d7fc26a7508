"""One way into a swarm's network, for nodes and clients alike: a daemon, a board, a channel."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from swarm.dht.bootstrap import KnownPeers
from swarm.dht.dht_board import DhtBoard
from swarm.errors import SwarmError, Unreachable
from swarm.p2p.daemon_watchdog import watch_answers
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.lobby import Lobby
from swarm.p2p.p2p_daemon import P2PDaemon, open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import answering
from swarm.task_set import TaskSet
from swarm.trust.door import Door, Refusal, open_to_all
from swarm.trust.entrance import Entrance, certificate_needed
from swarm.trust.identity import Identity
from swarm.trust.introduction import Introductions
from swarm.trust.members import Members

PAUSES = (0.0, 1.0, 5.0, 15.0, 30.0)  # seconds before each try to start p2pd again

logger = logging.getLogger(__name__)
Enter = Callable[[DhtBoard], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Entry:
    """How a peer comes into its swarm."""

    enter: Enter | None = None  # what it does on the board before anybody can reach its channel
    known: KnownPeers | None = None  # whom it turns to; else the network's initial peers
    refusal: Refusal = open_to_all  # says why we do not speak with a peer
    ticket: bytes = field(default=b"", repr=False)  # what buys a membership where one is needed
    state: Path | None = None  # where memberships are kept; None: certified swarms are closed
    introduction: bytes = b""  # our nodes' word that we are theirs, for hosts with allow lists


NEWCOMER = Entry()


@dataclass(slots=True)
class HeldNetwork:
    """The seams to the outside, open, and the daemon below them, which may be replaced."""

    identity: Identity
    network: Network  # how we stand in it now; the port is the one that p2pd listens on
    daemon: P2PDaemon
    board: DhtBoard
    channel: LibP2PChannel
    lobby: Lobby
    members: Members | None = None  # of a certified swarm
    _replacing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def relays(self) -> tuple[str, ...]:
        """The relays at which p2pd says it holds a place; raises Unreachable."""
        return await self.daemon.relays()

    async def is_reached_through(self, relay: str) -> bool:
        """Whether a stranger gets through to us by a relay."""
        return await self.daemon.is_reached_through(relay)

    async def connected(self) -> Mapping[str, Sequence[str]]:
        """The peers that we are connected to, and how; raises Unreachable."""
        return await self.daemon.connected()

    async def replace_daemon(self, network: Network) -> None:
        """Stand in the network otherwise, under the same identity and on the same port.

        Board and channel live on; their streams break, as when a connection is lost. Peers that do
        not answer do not keep the new p2pd from starting. Raises BadInput, Unreachable: then there
        is no daemon until a later call starts one.
        """
        async with self._replacing:
            await self._replace(network)

    async def _replace(self, network: Network) -> None:
        port, relays = network.port or self.network.port, await answering(network.relays)
        network = replace(network, port=port, relays=relays)
        try:
            await self._start_again(network)
        except Unreachable:
            if not network.initial_peers:
                raise
            await self._start_again(replace(network, initial_peers=()))
        self.network = network

    async def keep_daemon(self) -> None:
        """Start p2pd again whenever it has died; gives up after some tries in a row."""
        while not self.daemon.given_up.is_set():
            await self.daemon.ended.wait()
            if not await self._has_daemon_again():
                self.daemon.given_up.set()

    async def _has_daemon_again(self) -> bool:
        for pause in PAUSES:
            await asyncio.sleep(pause)
            try:
                async with self._replacing:
                    if not self.daemon.ended.is_set():  # it was meant to end: another one runs
                        return True
                    await self._replace(self.network)
            except (SwarmError, OSError, TimeoutError) as error:
                logger.warning("p2pd does not start again: %s", error)
            else:
                logger.warning("p2pd runs again; open connections were lost")
                return True
        return False

    async def _start_again(self, network: Network) -> None:
        async with self.daemon.replaced(self.identity, network):
            await self.board.reopen()
            await self.channel.reopen()
            await self.lobby.reopen()


@asynccontextmanager
async def hold_network(
    identity: Identity,
    network: Network,
    swarm: str,
    key: str,
    entry: Entry = NEWCOMER,
) -> AsyncIterator[HeldNetwork]:
    """Hold a p2pd, and the board and channel of a swarm on it; raises BadInput, Unreachable.

    What `enter` does on the board is done before anybody can reach the channel; if it raises, the
    channel is never opened. The daemon starts without initial peers, for it would end if none of
    them answers; the board finds them (see DhtBoard.open). Where members are certified, this
    machine becomes one first.
    """
    network = replace(network, relays=await answering(network.relays))
    async with AsyncExitStack() as stack:
        daemon = await open_p2p(identity, replace(network, initial_peers=()))
        stack.push_async_callback(daemon.close)
        lobby = Lobby(daemon, swarm, key)
        entrance = Entrance(swarm, entry.ticket, entry.state)
        members = await entrance.members(
            identity.peer, partial(lobby.redeem, network.initial_peers)
        )
        introductions = Introductions(swarm, entry.introduction)
        daemon.door = Door(identity.peer, entry.refusal, members, introductions)
        ask_how_we_stand = partial(lobby.learn_standing, network.initial_peers)
        try:
            board = await DhtBoard.open(
                daemon,
                swarm,
                identity,
                key=key,
                known=entry.known or KnownPeers(network.initial_peers),
                client=network.client,
            )
        except Unreachable:
            await _require_member(members, ask_how_we_stand)
            if members is None and key and await lobby.certifies(network.initial_peers):
                raise certificate_needed() from None
            raise
        stack.push_async_callback(board.close)
        if not board.neighbours:  # alone, or nobody has to do with us any more
            await _require_member(members, ask_how_we_stand)
        if entry.enter is not None:
            await entry.enter(board)
        channel = await LibP2PChannel.open(daemon, swarm, key)
        stack.push_async_callback(channel.close)
        listening = replace(network, port=network.port or daemon.listening_port)
        held = HeldNetwork(identity, listening, daemon, board, channel, lobby, members)
        tasks = await stack.enter_async_context(TaskSet())
        tasks.create("keeping p2pd", held.keep_daemon())
        tasks.create("watching p2pd", watch_answers(daemon))
        yield held


async def _require_member(
    members: Members | None, ask_how_we_stand: Callable[[Members], Awaitable[None]]
) -> None:
    """Raise BadInvite if the peers of the invite say, and prove, that this machine is revoked."""
    if members is not None:
        await ask_how_we_stand(members)
        members.require_member()
