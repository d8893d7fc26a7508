"""P2PDaemon: one p2pd with our identity; opens hivemind's P2P and knows its addresses."""

import asyncio
import errno
import ipaddress
import logging
import os
import re
import socket
import stat
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import (
    ControlFailure,
    P2PDaemonError,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2

from swarm.errors import BadInput, PeerError, PeerLost, PeerRefused, SwarmError, Unreachable
from swarm.formatting import printable
from swarm.invites import peer_of_address
from swarm.p2p.addresses import family_of, free_port, listening_hosts, tcp_multiaddr
from swarm.p2p.tcp_probe import tcp_problem
from swarm.task_set import TaskSet
from swarm.trust.door import Door
from swarm.trust.identity import Identity

START_SECONDS = 30.0
CONTROL_SECONDS = 10.0  # for one word with the daemon
DIAL_SECONDS = 8  # for the daemon to open a connection
CLOSE_SECONDS = 5.0
ADDRESSES_CAP = 8  # of one peer
PEERS_REMEMBERED = 1024
UNFOUND = ("routing: not found", "failed to find any peer", "no addresses", "no good addresses")
SEARCHES, SEARCH_SECONDS = 4, 0.25  # further looks for a peer that nobody knows, and between them
READ_LIMIT_BYTES = 1024 * 1024  # of a stream, before p2pd has to wait
LONGEST_CAUSE = 300  # characters of what p2pd says
LOOPBACK = "127.0.0.1"
CIRCUIT = "/p2p-circuit"  # behind a relay's multiaddr: the way to a peer through it
CID_OF_PEER = bytes.fromhex("a5032801720024")  # /p2p, 40 bytes, CIDv1 of an Ed25519 key
PEER_ALONE = bytes.fromhex("a503260024")  # /p2p, 38 bytes
SOCKETS_FOLDER = Path("/tmp")  # where hivemind puts them, whatever the system says
STALE_SECONDS = 60.0  # a younger socket may be of a daemon that is about to listen
SOCKETS_CAP = 1000  # to look at

PUNCH_PROTOCOL = "/libp2p/dcutr"
PUNCH_SECONDS = 3.0  # for a peer to say whether it speaks that

DIAL_ERRORS = (ControlFailure, OSError, ValueError, asyncio.IncompleteReadError, Unreachable)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Network:
    """How a peer stands in the network; port 0 lets the system choose."""

    host: str = LOOPBACK  # the address to listen on; 0.0.0.0 is every one, IPv6 ones too
    port: int = 0
    announce: tuple[str, ...] = ()  # multiaddrs at which others reach us, if we cannot see them
    initial_peers: tuple[str, ...] = ()  # multiaddrs with /p2p/<id>; empty founds a new swarm
    client: bool = False  # no listening: only open connections, be answered on them
    is_private: bool = False  # nobody outside can dial us: peers come through relays
    relays: tuple[str, ...] = ()  # the multiaddrs, with /p2p/<id>, of those that a private one uses

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port {self.port} is not between 0 and 65535")
        for address in (*self.initial_peers, *self.relays):
            peer_of_address(address)

    @property
    def is_loopback(self) -> bool:
        """Whether only peers on this machine can reach us."""
        return ipaddress.ip_address(self.host).is_loopback and not self.announce


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
            self.p2p = p2p = await _started(identity, network)
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
        return tuple(f"{each}/p2p/{self.peer}" for each in shown if "p2p-circuit" not in each)

    async def relays(self) -> tuple[str, ...]:
        """The multiaddrs, with /p2p/<id>, of the relays at which we say we hold a place.

        Whether they still keep it they do not say: see `is_reached_through`.
        """
        _, found = await _in_time(self.p2p._client.identify())
        shown = [str(each).partition("/p2p-circuit") for each in found]
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

    async def open_stream(
        self, peer: str, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw stream, dialing the peer if need be; raises PeerLost, PeerRefused.

        Safe to cancel, unlike hivemind's own call, which would leave the stream open.
        """
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
                _, writer = await self._open_stream(peer, PUNCH_PROTOCOL)
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
        path = str(self.p2p.daemon_listen_maddr["unix"])
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wanted)
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await _in_time(read_pbmsg_safe(reader, response))
        finally:
            writer.close()
        if response.type == p2pd_pb2.Response.ERROR:
            raise ControlFailure(response.error.msg)

    async def _open_stream(
        self, peer: str, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = str(self.p2p.daemon_listen_maddr["unix"])
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=READ_LIMIT_BYTES)
        except OSError as error:
            raise PeerLost("The own p2pd is gone.", peer=peer) from error
        with ExitStack() as undo:
            undo.callback(writer.close)
            try:
                await _request_stream(reader, writer, peer, protocol)
            except (asyncio.IncompleteReadError, OSError) as error:
                raise PeerLost("The own p2pd is gone.", peer=peer) from error
            undo.pop_all()
        return reader, writer

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

    async def close(self) -> None:
        """End the daemon; returns within seconds even if it hangs."""
        await self._end_process()
        await self._tasks.close()
        self.given_up.set()

    async def _end_process(self) -> None:
        self._closing = True
        await _shut_down(self.p2p)
        _remove_sockets(self.p2p)
        self.ended.set()

    async def _watch_daemon(self, p2p: P2P) -> None:
        code = await p2p._child.wait()
        if p2p is self.p2p:
            self.ended.set()
            if not self._closing:
                logger.error("the own p2pd ended with code %s", code)


async def open_p2p(identity: Identity, network: Network) -> P2PDaemon:
    """Start p2pd and join; holds a daemon until closed; raises BadInput, Unreachable."""
    return P2PDaemon(await _started(identity, network))


async def _started(identity: Identity, network: Network) -> P2P:
    _check_port(network)
    network = _with_one_port(network)
    await asyncio.to_thread(remove_stale_sockets)
    with identity.key_file() as path:
        try:
            p2p = await _start(network, str(path))
        except P2PDaemonError as error:
            raise _explained(error, network) from error
    if (peer := p2p.peer_id.to_base58()) != identity.peer:
        await _shut_down(p2p)
        raise BadInput(f"p2pd took our key for {peer} instead of {identity.peer}.")
    return p2p


def remove_stale_sockets(folder: Path = SOCKETS_FOLDER, age_seconds: float = STALE_SECONDS) -> None:
    """Remove what killed nodes of this user left: sockets of daemons that listen no more.

    Only daemons are tried: a node that lives would take an empty connection for a fault.
    """
    for path in islice(folder.glob("hivemind-p2p*.sock"), SOCKETS_CAP):
        with suppress(OSError):  # somebody else's, or just gone
            found = path.lstat()
            is_ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
            is_old = time.time() - found.st_mtime > age_seconds
            daemon = path.with_name(path.name.replace("-p2pclient-", "-p2pd-"))
            if is_ours and is_old and not _is_listening(daemon):
                path.unlink()


def _remove_sockets(p2p: P2P) -> None:
    """hivemind leaves them where its daemon ended first."""
    for address in (p2p._daemon_listen_maddr, p2p._client_listen_maddr):
        Path(str(address["unix"])).unlink(missing_ok=True)


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


class _NotFound(PeerLost):
    """Nobody knows the address of a peer (yet)."""


async def _request_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, protocol: str
) -> None:
    wanted = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol])
    request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted)
    await write_pbmsg(writer, request)
    response = p2pd_pb2.Response()
    await read_pbmsg_safe(reader, response)
    if response.type != p2pd_pb2.Response.ERROR:
        return
    cause = response.error.msg[-300:]
    if "protocols not supported" in cause:
        raise PeerRefused(f"Peer {peer} does not serve this swarm.", peer=peer)
    kind = _NotFound if any(words in cause for words in UNFOUND) else PeerLost
    raise kind(f"Cannot reach peer {peer}: {cause}.", peer=peer)


class _OwnP2P(P2P):  # type: ignore[misc]
    """p2pd in a session of its own: Ctrl-C reaches the node, which says goodbye through it."""

    @staticmethod
    def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
        alone = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
        return [sys.executable, "-ISc", alone, *P2P._make_process_args(*args, **kwargs)]


class _PrivateP2P(_OwnP2P):
    """p2pd finds its relays only without discovery, a flag that hivemind does not offer."""

    @staticmethod
    def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
        return _OwnP2P._make_process_args(*args, **kwargs, relayDiscovery=0)


async def _start(network: Network, path: str) -> P2P:
    """Create the P2P; unlike hivemind, leave no daemon behind when that fails or is cancelled."""
    async with AsyncExitStack() as undo:

        class Kept(_PrivateP2P if network.is_private else _OwnP2P):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                undo.push_async_callback(_shut_down, self)

        p2p = await Kept.create(**_options_of(network), identity_path=path)
        undo.pop_all()
    return p2p


def _wire_form(address: Any) -> bytes:
    """A multiaddr as p2pd reads it: hivemind writes the id of a relay in it as a CID."""
    data: bytes = address.to_bytes()
    return data.replace(CID_OF_PEER, PEER_ALONE)


async def _shut_down(p2p: P2P) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(p2p.shutdown(), CLOSE_SECONDS)


def _options_of(network: Network) -> dict[str, Any]:
    reach = {"no_listen": True, "dht_mode": "client", "host_maddrs": None}
    if not network.client:
        reach = {"host_maddrs": _listening(network), "dht_mode": "server"}
    if network.is_private:
        # Else others dial an address that no router lets in, and for two minutes no hole can be
        # punched: their own router remembers each vain dial for so long.
        reach |= {"force_reachability": "private", "dht_mode": "client"}
        reach |= {"use_auto_relay": True, "trusted_relays": network.relays or None}
    return {
        **reach,
        "initial_peers": list(network.initial_peers),
        "announce_maddrs": list(network.announce) or None,
        "auto_nat": not network.is_loopback,
        "nat_port_map": not (network.is_loopback or network.client),
        "use_relay": network.is_private or not network.is_loopback or network.client,
        "check_if_identity_free": False,  # would start a second daemon; the lock does it
        "startup_timeout": START_SECONDS,
    }


def _listening(network: Network) -> list[str]:
    # No QUIC: hivemind's p2pd is built with a Go and a quic-go that strangers can exhaust
    # (CVE-2023-49295, CVE-2024-22189). TCP carries everything, hole punching too.
    return [tcp_multiaddr(host, network.port) for host in listening_hosts(network.host)]


def _with_one_port(network: Network) -> Network:
    """The same port for both families: others are told of one, and dial back there."""
    if network.port or network.client:
        return network
    return replace(network, port=free_port(listening_hosts(network.host)))


def _check_port(network: Network) -> None:
    """Refuse a port in use, which p2pd would share, and an address that is not this machine's."""
    if network.client:
        return
    for host in listening_hosts(network.host):
        try:
            socket.create_server((host, network.port), family=family_of(host)).close()
        except OSError as error:
            raise _refused(error, host, network.port) from error


def _refused(error: OSError, host: str, port: int) -> BadInput:
    if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT):
        return BadInput(
            f"{host} is no address of this machine.",
            "Give one of its own with --listen, or 0.0.0.0 for all of them.",
        )
    taken = "is in use" if error.errno == errno.EADDRINUSE else f"is refused: {error.strerror}"
    return BadInput(f"Port {port} on {host} {taken}.", "Choose another with --port.")


def _explained(error: P2PDaemonError, network: Network) -> BadInput | Unreachable:
    text = str(error)
    if "bootstrap" in text:
        return Unreachable(
            "No peer in the invite answers.",
            "Check the network, or ask for a fresh invite.",
        )
    if "listen" in text:
        where = f"{network.host} port {network.port}"
        return BadInput(
            f"Cannot listen on {where}: {_last_line(text)}.", "Choose another with --port."
        )
    return Unreachable(f"The network daemon p2pd did not start: {_last_line(text)}.", "Try again.")


def _dialing_problem(text: str) -> str:
    """What p2pd says of a failed dial, in a few words."""
    if "connection refused" in text:
        return "refused"
    if "peer id mismatch" in text:
        return "another peer is there now"
    if "backoff" in text:
        return "failed a moment ago"
    return _last_line(text)[-80:]


def _last_line(text: str) -> str:
    """The end of what p2pd said, whole words, without the time."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    line = re.sub(r"^.*?\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", lines[-1])
    return printable(" ".join(line.split()).rstrip("."), LONGEST_CAUSE)


async def _in_time(awaitable: Any) -> Any:
    try:
        return await asyncio.wait_for(awaitable, CONTROL_SECONDS)
    except TimeoutError as error:
        raise Unreachable("The own p2pd does not answer.", "Restart the program.") from error
