"""A client's way into the network: a board and a channel under a throwaway identity."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from swarm.dht.board import Board
from swarm.invites import Invite
from swarm.p2p.channel import Channel


@dataclass(frozen=True, slots=True)
class Links:
    """The two seams to the outside, open."""

    board: Board
    channel: Channel


Connect = Callable[[Invite], AbstractAsyncContextManager[Links]]


@asynccontextmanager
async def open_links(invite: Invite) -> AsyncIterator[Links]:
    """Hold a board and a channel under a throwaway identity; raises Unreachable.

    What they stand on is loaded here: a command line is read without it.
    """
    from swarm.network import hold_network
    from swarm.p2p.addresses import dialable
    from swarm.p2p.p2p_daemon import Network
    from swarm.trust.identity import Identity

    network = Network(initial_peers=dialable(invite.addresses), client=True)
    identity = Identity.throwaway()
    async with hold_network(identity, network, invite.swarm, invite.key) as held:
        yield Links(held.board, held.channel)
