"""One way into a swarm's network, for nodes and clients alike: a daemon, a board, a channel."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from swarm.dht.board import Board
from swarm.dht.dht_board import DhtBoard
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import Network, P2PDaemon, open_p2p
from swarm.trust.door import Door, Refusal, open_to_all
from swarm.trust.identity import Identity

Enter = Callable[[Board], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HeldNetwork:
    """The seams to the outside, open, and the daemon below them."""

    daemon: P2PDaemon
    board: DhtBoard
    channel: LibP2PChannel


@asynccontextmanager
async def hold_network(
    identity: Identity,
    network: Network,
    swarm: str,
    key: str,
    enter: Enter | None = None,
    refusal: Refusal = open_to_all,
) -> AsyncIterator[HeldNetwork]:
    """Hold a p2pd, and the board and channel of a swarm on it; raises BadInput, Unreachable.

    What `enter` does on the board is done before anybody can reach the channel; if it raises, the
    channel is never opened. `refusal` says why we do not speak with a peer.
    """
    async with AsyncExitStack() as stack:
        daemon = await open_p2p(identity, network)
        stack.push_async_callback(daemon.close)
        daemon.door = Door(identity.peer, refusal)
        board = await DhtBoard.open(
            daemon,
            swarm,
            identity,
            key=key,
            initial_peers=network.initial_peers,
            client=network.client,
        )
        stack.push_async_callback(board.close)
        if enter is not None:
            await enter(board)
        channel = await LibP2PChannel.open(daemon, swarm, key)
        stack.push_async_callback(channel.close)
        yield HeldNetwork(daemon, board, channel)
