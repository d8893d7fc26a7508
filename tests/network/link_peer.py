"""One peer of a link, as a process of its own: lets itself be measured, or measures.

serve ADDRESS                        prints its id and address, then what it finds as receiver
measure ADDRESS PEER AT HOW_OFTEN    prints what it finds: seconds, bytes per second
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from node.network.link_probe import LinkMeasurement, LinkProbe
from node.network.machine_lock import MachineLock
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import P2PDaemon, open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.trust.identity import Identity

PAUSE_SECONDS = 0.3  # for what is still on its way


def say(*values: object) -> None:
    """Print a line at once."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def say_found(_peer: str, found: LinkMeasurement) -> None:
    """Print a measurement."""
    say(found.round_trip_seconds, found.bytes_per_second)


@asynccontextmanager
async def open_probe(
    address: str, known: tuple[str, ...] = ()
) -> AsyncIterator[tuple[P2PDaemon, LinkProbe]]:
    """Hold a daemon at this address of the host, and a probe over it."""
    daemon = await open_p2p(Identity.throwaway(), Network(host=address, initial_peers=known))
    channel = await LibP2PChannel.open(daemon, "links")
    channel.listen(lambda _peer, _message: None, lambda _peer, _reason: None)
    with tempfile.TemporaryDirectory() as folder:
        lock = MachineLock(Path(folder, "lock"))
        yield daemon, LinkProbe(channel, address, lambda: False, say_found, lock)
    await channel.close()
    await daemon.close()


async def serve(address: str) -> None:
    """Be measured until standard input ends."""
    async with open_probe(address) as (daemon, _):
        say(daemon.peer, (await daemon.addresses())[0])
        await asyncio.to_thread(sys.stdin.read)


async def measure(address: str, peer: str, at: str, how_often: str) -> None:
    """Measure the link to a peer."""
    async with open_probe(address, (at,)) as (_, probe):
        for _ in range(int(how_often)):
            say_found(peer, await probe.measure(peer))
            await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    uvloop.run(serve(*words) if what == "serve" else measure(*words))
