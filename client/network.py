"""A client's way into the network: a board and a channel under a throwaway identity."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from swarm.dht.board import Board
from swarm.invites import Invite
from swarm.p2p.channel import Channel
from swarm.state_folder import own_environment, state_folder
from swarm.task_set import TaskSet
from swarm.trust.members import Members


@dataclass(frozen=True, slots=True)
class Links:
    """The two seams to the outside, open."""

    board: Board
    channel: Channel
    members: Members | None = None  # of a swarm that certifies them


Connect = Callable[[Invite], AbstractAsyncContextManager[Links]]


@asynccontextmanager
async def open_links(
    invite: Invite, state: Path | None = None, *, introduce: bool = False
) -> AsyncIterator[Links]:
    """Hold a board and a channel under a throwaway identity; raises Unreachable, BadInput.

    In a swarm that certifies its members this machine's certificate is in the state folder, or is
    bought with the invite and kept there.

    With `introduce` the nodes of the state folder say that this client is theirs. Peers remembered
    there are tried beside those of the invite. What all of it
    stands on is loaded here: a command line is read without it.
    """
    from swarm.dht.admissions import Admissions
    from swarm.dht.bootstrap import KnownPeers
    from swarm.network import Entry, hold_network
    from swarm.p2p.address_book import AddressBook
    from swarm.p2p.addresses import dialable
    from swarm.p2p.p2pd_process import Network
    from swarm.trust.identity import Identity
    from swarm.trust.introduction import introduction_of, nodes_of
    from swarm.trust.network_clock import CLOCK

    network = Network(initial_peers=dialable(invite.addresses), client=True)
    identity = Identity.throwaway()
    book = await asyncio.to_thread(AddressBook.open, state, invite.swarm) if state else None
    known = KnownPeers(network.initial_peers, book)
    kept = state or state_folder(own_environment())
    nodes = nodes_of(kept) if introduce else []
    shown = introduction_of(invite.swarm, identity.peer, nodes, CLOCK.now())
    entry = Entry(known=known, ticket=invite.ticket, state=kept, introduction=shown)
    async with (
        hold_network(identity, network, invite.swarm, invite.key, entry) as held,
        TaskSet() as tasks,
    ):
        if held.members:
            admissions = Admissions(held.members, held.lobby, held.channel, held.board)
            tasks.create("hearing of revocations", admissions.share())
        yield Links(held.board, held.channel, held.members)
