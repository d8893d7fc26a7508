"""How the p2pd of a node is connected, by its own word: which way libp2p takes now."""

import asyncio

import psutil
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

LISTEN = "-listen=/unix"  # of p2pd's command line, before the path of its socket
SECONDS = 20.0


def connections_of_p2pd(node: int) -> dict[str, list[str]]:
    """The multiaddrs in use, by peer, of the p2pd that a process has started."""
    return asyncio.run(_connections_at(_socket_of(node)))


async def _connections_at(path: str) -> dict[str, list[str]]:
    response = p2pd_pb2.Response()
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
            await read_pbmsg_safe(reader, response)
        finally:
            writer.close()
    found: dict[str, list[str]] = {}
    for each in response.peers:
        addresses = found.setdefault(PeerID(each.id).to_base58(), [])
        addresses += [str(Multiaddr(address)) for address in each.addrs]
    return found


def _socket_of(node: int) -> str:
    children = psutil.Process(node).children(recursive=True)
    words = [word for child in children for word in child.cmdline()]
    (path,) = {word.removeprefix(LISTEN) for word in words if word.startswith(LISTEN)}
    return path
