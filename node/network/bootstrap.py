"""Opening a node's way to the others: its identity, daemon, board and channel."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from node.config import NodeConfig
from node.network.last_port import keep_port, last_port
from swarm.dht.admissions import Admissions, certify_founder
from swarm.dht.board import Board
from swarm.dht.bootstrap import KnownPeers, Say
from swarm.dht.dht_board import DhtBoard
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.errors import BadInput, BadInvite, Unreachable
from swarm.invites import Invite, invite_text
from swarm.network import Entry, HeldNetwork, hold_network
from swarm.p2p.address_book import AddressBook
from swarm.p2p.addresses import CIRCUIT, dialable, listening_hosts, own_multiaddrs
from swarm.p2p.channel import StreamChannel
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import is_probably_private, relays_among
from swarm.records import Capability, Manifest
from swarm.state_folder import (
    LAST_INVITE,
    write_private,
)
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.peer_lists import PeerLists

logger = logging.getLogger(__name__)

KEPT_MANIFEST = "manifest"  # the founder's word, in a node's folder
KNOWN_SECONDS = 5.0  # for a swarm to be found on its own board
LOOK_SECONDS = 0.5
REMEMBERED = 16  # addresses in the invite that is kept: ours, and those that we joined by
NODES_CAP = 32  # nodes of one user on one machine


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """The open ways to the outside."""

    process: P2PDaemon
    board: Board
    channel: StreamChannel
    invite: Invite
    folder: Path  # this node's state
    addresses: tuple[str, ...]  # where others reach us
    identity: Identity
    manifests: ManifestKeeper
    joined: asyncio.Event  # another peer has been met
    last_swarm: str = ""  # which one commands without an invite asked before
    held: HeldNetwork | None = None  # what the ways stand on; None in memory
    admissions: Admissions | None = None  # of a swarm that certifies its members

    def invite_for_others(self) -> Invite:
        """The invite with a ticket, where a membership has to be bought."""
        return self.admissions.invite(self.invite) if self.admissions else self.invite


def invite_of(config: NodeConfig) -> Invite | None:
    """The invite to join by, or None for a founder; raises BadInvite."""
    if config.founds:
        return None
    text = config.invite
    if not text:
        try:
            text = (config.state / LAST_INVITE).read_text(errors="replace")
        except OSError as error:
            raise BadInvite(
                "No invite is given, and none is remembered.",
                "Pass --join INVITE, set SWARM_INVITE, or start a swarm with --host.",
            ) from error
    return Invite.parse(invite_text(text)).require_current(time.time())


@asynccontextmanager
async def open_network(
    config: NodeConfig, founding: Callable[[], Awaitable[Manifest]] | None, say: Say
) -> AsyncIterator[NodeNetwork]:
    """Hold the state folder, a daemon, the board and the channel; raises BadInput, Unreachable.

    A founder says what its swarm serves before anybody can ask; that may be found meanwhile.
    Whoever finds nobody is alone, says so, and goes on trying; a founder that comes back looks for
    its swarm first.
    """
    invite = invite_of(config)
    async with AsyncExitStack() as stack:
        identity, folder = open_identity(config.state)
        stack.callback(identity.close)
        swarm = invite.swarm if invite else swarm_id(config.swarm, identity.peer)
        key = invite.key if invite else config.key
        founded: Manifest | None = None

        async def enter(board: DhtBoard) -> None:
            nonlocal founded
            if founding:
                founded = await founding()
                await _require_own_model(board, founded)
                await board.publish(founded)
            elif board.joined.is_set():
                await require_swarm(board, swarm)

        network = daemon_network(config, invite)
        port = network.port or last_port(folder, listening_hosts(network.host))
        network = replace(network, port=port)
        lists = PeerLists(config.banned, config.allowed, config.state)
        book = await asyncio.to_thread(AddressBook.open, config.state, swarm, identity.peer)
        known = KnownPeers(network.initial_peers, book, say)
        ticket = invite.ticket if invite else b""
        if config.founds and key:
            certify_founder(swarm, identity, config.state, folder / KEPT_MANIFEST)
        way = Entry(enter, known, lists.problem_with, ticket, config.state)
        held = await stack.enter_async_context(hold_network(identity, network, swarm, key, way))
        keep_port(folder, held.network.port)
        admissions = await _open_admissions(held, config.state)
        manifests = ManifestKeeper(held.channel, held.board, swarm, path=folder / KEPT_MANIFEST)
        manifests.hand_on()
        own = await _addresses_of(held.daemon, config, identity.peer)
        model = founded.model if founded else invite.model if invite else ""
        circuits = tuple(f"{each}{CIRCUIT}/p2p/{identity.peer}" for each in network.relays)
        near = (*own, *circuits, *network.initial_peers)[:REMEMBERED]
        fresh = Invite(near, swarm, model, key, relays=network.relays, ticket=ticket)
        before = _last_swarm(config.state)
        _remember(fresh, config.state / LAST_INVITE)
        yield NodeNetwork(
            process=held.daemon,
            board=held.board,
            channel=held.channel,
            invite=fresh,
            folder=folder,
            addresses=own,
            identity=identity,
            manifests=manifests,
            joined=held.board.joined,
            last_swarm=before,
            held=held,
            admissions=admissions,
        )


async def _open_admissions(held: HeldNetwork, state: Path) -> Admissions | None:
    """Let newcomers redeem their tickets, where a swarm certifies its members."""
    if held.members is None:
        return None
    keep = partial(MachineState(state).keep, held.members.swarm)
    admissions = Admissions(held.members, held.lobby, held.channel, held.board, keep)
    await held.lobby.open(admissions.admit, held.members)
    return admissions


async def _addresses_of(daemon: P2PDaemon, config: NodeConfig, peer: str) -> tuple[str, ...]:
    """Where others reach us; raises Unreachable."""
    seen = (*await daemon.addresses(), *_seen_from_here(config, peer))
    if own := tuple(dict.fromkeys(seen))[:8]:
        return own
    raise Unreachable(
        "The network daemon listens at no address of this machine.",
        "Bring a network interface up, or name an address of yours with --listen.",
    )


def _seen_from_here(config: NodeConfig, peer: str) -> tuple[str, ...]:
    """Our own addresses beside those announced: few routers let us reach ourselves by those."""
    if not config.announce:
        return ()
    return tuple(f"{each}/p2p/{peer}" for each in own_multiaddrs(config.listen, config.port))


def _remember(invite: Invite, path: Path) -> None:
    try:
        write_private(path, invite.encode().encode())
    except OSError as error:
        raise BadInput(
            f"Cannot write {path}: {error.strerror or error}.",
            "Make room there, or choose another folder with --state.",
        ) from error


def _last_swarm(state: Path) -> str:
    """Which swarm commands without an invite ask so far, if any."""
    try:
        return Invite.parse((state / LAST_INVITE).read_text(errors="replace")).swarm
    except (OSError, BadInvite):
        return ""


async def _require_own_model(board: Board, founded: Manifest) -> None:
    """Raise BadInput if a founder comes back to its swarm with another model."""
    records = await board.read(Capability)
    served = {each.model for peer, each in records.items() if peer != board.peer}
    if served and founded.digest not in served:
        raise BadInput(
            f"Your swarm is still there, and serves another model than {founded.model}.",
            "Come back with the model that it serves, or found another swarm: --swarm NAME.",
        )


async def require_swarm(board: Board, swarm: str) -> None:
    """Raise BadInvite if the peers in the invite have never heard of its swarm."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while not (len(await board.read(Manifest)) or len(await board.read(Capability))):
        if time.monotonic() > deadline:
            raise BadInvite(
                f"The peers in the invite know no swarm {swarm}.", "Ask for a fresh invite."
            )
        await asyncio.sleep(LOOK_SECONDS)


def open_identity(state: Path) -> tuple[Identity, Path]:
    """The first node folder that no other process uses; raises BadInput."""
    refused: BadInput | None = None
    for number in range(1, NODES_CAP + 1):
        folder = state / f"node-{number}"
        try:
            return Identity.load_or_create(folder), folder
        except BadInput as error:
            if "in use" not in error.cause:
                raise
            refused = error
    raise refused or BadInput(f"{state} has no free node folder.")


def daemon_network(config: NodeConfig, invite: Invite | None) -> Network:
    """How this node stands in the network: behind a router, as long as nothing speaks against it.

    Others dial whoever calls itself public, and vain dials would keep holes from being punched.
    """
    peers = dialable(invite.addresses) if invite else ()
    relays = invite.relays if invite else ()
    own = own_multiaddrs(config.listen, config.port)
    named = (*config.relays, *relays)
    is_private = is_probably_private(config.announce, (*config.relays, *peers), own)
    return Network(
        host=config.listen,
        port=config.port,
        announce=config.announce,
        initial_peers=peers,
        is_private=is_private,
        relays=relays_among({}, {}, (*named, *peers)) if is_private else (),
    )
