"""A client's way into the network: a daemon, a board and a channel under a throwaway identity."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from swarm.dht.board import Board
from swarm.dht.dht_board import DhtBoard
from swarm.invites import Invite
from swarm.p2p.channel import Channel
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import Network, open_p2p
from swarm.trust.identity import Identity


@dataclass(frozen=True, slots=True)
class Links:
    """The two seams to the outside, open."""

    board: Board
    channel: Channel


Connect = Callable[[Invite], AbstractAsyncContextManager[Links]]


@asynccontextmanager
async def open_links(invite: Invite) -> AsyncIterator[Links]:
    """Hold a p2pd, a board and a channel under a throwaway identity; raises Unreachable."""
    identity = Identity.throwaway()
    network = Network(initial_peers=invite.addresses, client=True)
    async with AsyncExitStack() as stack:
        daemon = await open_p2p(identity, network)
        stack.push_async_callback(daemon.close)
        board = await DhtBoard.open(
            daemon,
            invite.swarm,
            identity,
            key=invite.key,
            initial_peers=invite.addresses,
            client=True,
        )
        stack.push_async_callback(board.close)
        channel = await LibP2PChannel.open(daemon, invite.swarm, invite.key)
        stack.push_async_callback(channel.close)
        yield Links(board, channel)
