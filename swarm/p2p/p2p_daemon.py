"""P2PDaemon: one p2pd with our identity; opens hivemind's P2P and knows its addresses."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import psutil
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import (
    ControlFailure,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2

from swarm.errors import PeerError, PeerLost, PeerRefused, SwarmError, Unreachable
from swarm.invites import peer_of_address
from swarm.p2p.addresses import CIRCUIT
from swarm.p2p.p2pd_process import (
    Network,
    last_line,
    remove_sockets,
    shut_down,
    start_p2pd,
)
from swarm.p2p.tcp_probe import tcp_problem
from swarm.task_set import TaskSet
from swarm.trust.door import Door
from swarm.trust.identity import Identity

CONTROL_SECONDS = 10.0  # for one word with the daemon
DIAL_SECONDS = 8  # for the daemon to open a connection
ADDRESSES_CAP = 8  # of one peer
PEERS_REMEMBERED = 1024
UNFOUND = ("routing: not found", "failed to find any peer", "no addresses", "no good addresses")
SEARCHES, SEARCH_SECONDS = 4, 0.25  # further looks for a peer that nobody knows, and between them
READ_LIMIT_BYTES = 1024 * 1024  # of a stream, before p2pd has to wait
CID_OF_PEER = bytes.fromhex("a5032801720024")  # /p2p, 40 bytes, CIDv1 of an Ed25519 key
PEER_ALONE = bytes.fromhex("a503260024")  # /p2p, 38 bytes

PUNCH_PROTOCOL = "/libp2p/dcutr"
PUNCH_SECONDS = 3.0  # for a peer to say whether it speaks that

DIAL_ERRORS = (ControlFailure, OSError, ValueError, asyncio.IncompleteReadError, Unreachable)

RawStream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

logger = logging.getLogger(__name__)


class P2PDaemon:
    """A running p2pd; `ended` is set while it is gone, whoever ended it.

    `given_up` is set when nobody will start another one.
    """

    def __init__(self, p2p: P2P) -> None:
        self.p2p = p2p
        self.peer: str = p2p.peer_id.to_base58()
        self.door = Door(self.peer)
        """Whom channel and board on this daemon have to do with."""
        self.ended, self.given_up = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._running = asyncio.Event()  # cleared while another p2pd takes the place of this one
        self._running.set()
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._tasks = TaskSet()
        self._tasks.create("watching p2pd", self._watch_daemon(p2p))

    @asynccontextmanager
    async def replaced(self, identity: Identity, network: Network) -> AsyncIterator[None]:
        """Start another p2pd in place of this one; calls wait until the block ends.

        Every connection ends. Raises BadInput, Unreachable: then there is no daemon any more.
        """
        self._running.clear()
        try:
            await self._end_process()
            self.p2p = p2p = await start_p2pd(identity, network)
            self._closing = False
            self.ended.clear()
            self._tasks.create("watching p2pd", self._watch_daemon(p2p))
            yield
        finally:
            self._running.set()

    @property
    def listening_port(self) -> int:
        """The TCP port on which the daemon takes connections; 0 if on none."""
        with suppress(psutil.Error):
            found = psutil.Process(self.p2p._child.pid).net_connections("tcp")
            ports = [each.laddr.port for each in found if each.status == psutil.CONN_LISTEN]
            return min(ports, default=0)
        return 0

    async def addresses(self) -> tuple[str, ...]:
        """The multiaddrs for an invite: direct ones, each with our peer id; empty for a client."""
        _, found = await _in_time(self.p2p._client.identify())
        shown = map(str, found)  # hivemind's own call takes every fault for "does not listen"
        return tuple(f"{each}/p2p/{self.peer}" for each in shown if CIRCUIT not in each)

    async def relays(self) -> tuple[str, ...]:
        """The multiaddrs, with /p2p/<id>, of the relays at which we say we hold a place.

        Whether they still keep it they do not say: see `is_reached_through`.
        """
        _, found = await _in_time(self.p2p._client.identify())
        shown = [str(each).partition(CIRCUIT) for each in found]
        return tuple(dict.fromkeys(relay for relay, circuit, _ in shown if circuit))

    async def is_reached_through(self, relay: str) -> bool:
        """Whether a stranger gets through to us by a relay, by the word of a p2pd made for it."""
        try:
            stranger = await open_p2p(Identity.throwaway(), Network(client=True))
        except SwarmError:
            return True  # our own fault says nothing against the relay
        try:
            await stranger._dial(self.peer, [f"{relay}{CIRCUIT}"])
        except DIAL_ERRORS:
            return False
        finally:
            await stranger.close()
        return True

    async def connect(self, address: str) -> None:
        """Open a connection to a multiaddr with /p2p/<id>; raises BadInvite, Unreachable.

        The cause is a few words, as they stand in a list of addresses.
        """
        peer = peer_of_address(address)
        try:
            await self._dial(peer, [address])
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise Unreachable("the own p2pd does not dial it") from error
        except ControlFailure as error:
            raise Unreachable(_dialing_problem(str(error))) from error

    async def problem_at(self, address: str) -> str:
        """Why nothing listens at a multiaddr, "" if something does: asked before p2pd is."""
        return await tcp_problem(address)

    async def open_stream(self, peer: str, protocol: str) -> RawStream:
        """Open a raw stream, dialing the peer if need be; raises PeerLost, PeerRefused.

        Safe to cancel, unlike hivemind's own call, which would leave the stream open.
        """
        stream, _ = await self.open_known_stream(peer, protocol)
        return stream

    async def open_known_stream(self, peer: str, protocol: str) -> tuple[RawStream, str]:
        """The same, with the multiaddr in use; raises PeerLost, PeerRefused."""
        await self._running.wait()
        for _ in range(SEARCHES):
            try:
                return await self._open_stream(peer, protocol)
            except _NotFound:  # a peer that has just joined is known to all a moment later
                if not await self._connect_to(peer):
                    await asyncio.sleep(SEARCH_SECONDS)
        return await self._open_stream(peer, protocol)

    def note_addresses(self, peer: str, addresses: list[str] | tuple[str, ...]) -> None:
        """Remember where a peer says it is: libp2p's own search passes some networks over."""
        self._known.pop(peer, None)
        self._known[peer] = tuple(addresses[:ADDRESSES_CAP])
        if len(self._known) > PEERS_REMEMBERED:
            self._known.popitem(last=False)

    async def dial(self, peer: str, addresses: Sequence[str]) -> bool:
        """Open a connection at one of these multiaddrs, if none is open; whether one answered."""
        try:
            await self._dial(peer, addresses)
        except DIAL_ERRORS:
            return False
        return bool(addresses)

    async def is_ready_to_punch(self, peer: str) -> bool:
        """Whether libp2p of a connected peer would punch a hole: it knows its address outside."""
        try:
            async with asyncio.timeout(PUNCH_SECONDS):
                (_, writer), _ = await self._open_stream(peer, PUNCH_PROTOCOL)
        except (PeerError, TimeoutError):
            return False
        writer.close()
        return True

    async def _connect_to(self, peer: str) -> bool:
        """Try the addresses that a peer has given; whether one of them answered."""
        return await self.dial(peer, self._known.get(peer, ()))

    async def _dial(self, peer: str, addresses: Sequence[str]) -> None:
        """Let p2pd dial; safe to cancel, unlike hivemind's own call; raises ControlFailure."""
        kind = type(self.p2p.daemon_listen_maddr)
        bare = [_wire_form(kind(each.removesuffix(f"/p2p/{peer}"))) for each in addresses]
        if not bare:
            return
        wanted = p2pd_pb2.ConnectRequest(
            peer=PeerID.from_base58(peer).to_bytes(), addrs=bare, timeout=DIAL_SECONDS
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wanted)
        response = await self._answer_to(request)
        if response.type == p2pd_pb2.Response.ERROR:
            raise ControlFailure(response.error.msg)

    async def is_answering(self) -> bool:
        """Whether the process answers at all; safe to cancel."""
        try:
            await self._answer_to(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        except DIAL_ERRORS:
            return False
        return True

    async def _answer_to(self, request: p2pd_pb2.Request) -> p2pd_pb2.Response:
        """Ask p2pd over a connection of its own, which is closed whatever happens."""
        path = str(self.p2p.daemon_listen_maddr["unix"])
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await _in_time(read_pbmsg_safe(reader, response))
        finally:
            writer.close()
        return response

    async def _open_stream(self, peer: str, protocol: str) -> tuple[RawStream, str]:
        path = str(self.p2p.daemon_listen_maddr["unix"])
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=READ_LIMIT_BYTES)
        except OSError as error:
            raise PeerLost("The own p2pd is gone.", peer=peer) from error
        with ExitStack() as undo:
            undo.callback(writer.close)
            try:
                address = await _request_stream(reader, writer, peer, protocol)
            except (asyncio.IncompleteReadError, OSError) as error:
                raise PeerLost("The own p2pd is gone.", peer=peer) from error
            undo.pop_all()
        return (reader, writer), address

    async def disconnect(self, peer: str) -> None:
        """Drop the connection to a peer, so that the next call dials afresh."""
        gone = (ControlFailure, OSError, asyncio.IncompleteReadError, Unreachable)
        with suppress(*gone):
            await _in_time(self.p2p._client.disconnect(PeerID.from_base58(peer)))

    async def connected(self) -> dict[str, tuple[str, ...]]:
        """The peers that we are connected to, each with the multiaddrs that are in use."""
        try:
            peers = await _in_time(self.p2p.list_peers())
        except (ControlFailure, OSError, asyncio.IncompleteReadError) as error:
            raise Unreachable("The own p2pd does not answer.") from error
        return {str(p.peer_id): tuple(f"{a}/p2p/{p.peer_id}" for a in p.addrs) for p in peers}

    @property
    def cpu_seconds(self) -> float:
        """What its process has computed so far; 0 if it is gone."""
        with suppress(psutil.Error):
            times = psutil.Process(self.p2p._child.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def kill(self, reason: str) -> None:
        """End a p2pd that hangs; `ended` is set once it is gone."""
        logger.error("the own p2pd hangs: %s; it is killed", reason)
        with suppress(ProcessLookupError):
            self.p2p._child.kill()

    async def close(self) -> None:
        """End the daemon; returns within seconds even if it hangs."""
        await self._end_process()
        await self._tasks.close()
        self.given_up.set()

    async def _end_process(self) -> None:
        self._closing = True
        await shut_down(self.p2p)
        remove_sockets(self.p2p)
        self.ended.set()

    async def _watch_daemon(self, p2p: P2P) -> None:
        code = await p2p._child.wait()
        if p2p is self.p2p:
            self.ended.set()
            if not self._closing:
                logger.error("the own p2pd ended with code %s", code)


async def open_p2p(identity: Identity, network: Network) -> P2PDaemon:
    """Start p2pd and join; holds a daemon until closed; raises BadInput, Unreachable."""
    return P2PDaemon(await start_p2pd(identity, network))


class _NotFound(PeerLost):
    """Nobody knows the address of a peer (yet)."""


async def _request_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, protocol: str
) -> str:
    """Ask p2pd for a stream; returns the multiaddr of the connection that carries it."""
    wanted = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol])
    request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted)
    await write_pbmsg(writer, request)
    response = p2pd_pb2.Response()
    await read_pbmsg_safe(reader, response)
    if response.type != p2pd_pb2.Response.ERROR:
        return str(StreamInfo.from_protobuf(response.streamInfo).addr)
    cause = response.error.msg[-300:]
    if "protocols not supported" in cause:
        raise PeerRefused(f"Peer {peer} does not serve this swarm.", peer=peer)
    kind = _NotFound if any(words in cause for words in UNFOUND) else PeerLost
    raise kind(f"Cannot reach peer {peer}: {cause}.", peer=peer)


def _wire_form(address: Any) -> bytes:
    """A multiaddr as p2pd reads it: hivemind writes the id of a relay in it as a CID."""
    data: bytes = address.to_bytes()
    return data.replace(CID_OF_PEER, PEER_ALONE)


def _dialing_problem(text: str) -> str:
    """What p2pd says of a failed dial, in a few words."""
    if "connection refused" in text:
        return "refused"
    if "peer id mismatch" in text:
        return "another peer is there now"
    if "backoff" in text:
        return "failed a moment ago"
    return last_line(text)[-80:]


async def _in_time(awaitable: Any) -> Any:
    try:
        async with asyncio.timeout(CONTROL_SECONDS):
            return await awaitable
    except TimeoutError as error:
        raise Unreachable("The own p2pd does not answer.", "Restart the program.") from error
