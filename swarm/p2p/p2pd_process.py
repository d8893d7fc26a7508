"""p2pd as a process: how a peer stands in the network, flags, sockets, why it did not start."""

import asyncio
import errno
import ipaddress
import os
import re
import socket
import stat
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError

from swarm.errors import BadInput, Unreachable
from swarm.formatting import printable
from swarm.invites import peer_of_address
from swarm.p2p.addresses import family_of, free_port, listening_hosts, tcp_multiaddr
from swarm.trust.identity import Identity

START_SECONDS = 30.0
CLOSE_SECONDS = 5.0
LONGEST_CAUSE = 300  # characters of what p2pd says
LOOPBACK = "127.0.0.1"
SOCKETS_FOLDER = Path("/tmp")  # where hivemind puts them, whatever the system says
STALE_SECONDS = 60.0  # a younger socket may be of a daemon that is about to listen
SOCKETS_CAP = 1000  # to look at


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


async def start_p2pd(identity: Identity, network: Network) -> P2P:
    """A p2pd with our identity that has joined; raises BadInput, Unreachable."""
    _check_port(network)
    network = _with_one_port(network)
    await asyncio.to_thread(remove_stale_sockets)
    with identity.key_file() as path:
        try:
            async with asyncio.timeout(START_SECONDS + CLOSE_SECONDS):
                p2p = await _start(network, str(path))
        except P2PDaemonError as error:
            raise _explained(error, network) from error
        except TimeoutError as error:
            raise Unreachable("The network daemon p2pd does not answer.", "Try again.") from error
    if (peer := p2p.peer_id.to_base58()) != identity.peer:
        await shut_down(p2p)
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


def remove_sockets(p2p: P2P) -> None:
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
                undo.push_async_callback(shut_down, self)

        p2p = await Kept.create(**_options_of(network), identity_path=path)
        undo.pop_all()
    return p2p


async def shut_down(p2p: P2P) -> None:
    """End a p2pd; returns within seconds even if it hangs: then it is killed."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await p2p.shutdown()
    except TimeoutError:
        with suppress(ProcessLookupError):
            p2p._child.kill()


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
        "nat_port_map": False,  # docs/decisions/0011: it opens a port of which nobody learns
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
            f"Cannot listen on {where}: {last_line(text)}.", "Choose another with --port."
        )
    return Unreachable(f"The network daemon p2pd did not start: {last_line(text)}.", "Try again.")


def last_line(text: str) -> str:
    """The end of what p2pd said, whole words, without the time."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    line = re.sub(r"^.*?\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", lines[-1])
    return printable(" ".join(line.split()).rstrip("."), LONGEST_CAUSE)
