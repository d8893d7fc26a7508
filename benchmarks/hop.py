"""One hop: STEP frames of 16 KiB to another process and back, through both libp2p daemons."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter

import uvloop

from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.trust.identity import Identity
from swarm.wire.messages import Message, Step

SWARM = "benchmark"
BODY = bytes(16 * 1024)


@asynccontextmanager
async def open_channel(
    addresses: tuple[str, ...] = (),
) -> AsyncIterator[tuple[LibP2PChannel, list[str]]]:
    """Hold a daemon on loopback and a channel; yields it with its addresses."""
    network = Network(host="127.0.0.1", initial_peers=addresses)
    process = await open_p2p(Identity.throwaway(), network)
    channel = await LibP2PChannel.open(process, SWARM)
    try:
        yield channel, list(await process.addresses())
    finally:
        await channel.close()
        await process.close()


async def serve() -> None:
    """Send every message back until standard input ends."""
    loop = asyncio.get_running_loop()
    sending: set[asyncio.Task[None]] = set()
    async with open_channel() as (channel, addresses):

        def back(peer: str, message: Message) -> None:
            task = loop.create_task(channel.send(peer, message))
            sending.add(task)
            task.add_done_callback(sending.discard)

        channel.listen(back, lambda peer, reason: None)
        print(channel.peer, addresses[0], flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def hop_seconds(rounds: int) -> list[float]:
    """Half a round trip each; starts and ends the other process."""
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.hop"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    try:
        peer, address = (await other.stdout.readline()).decode().split()
        async with open_channel((address,)) as (channel, _):
            return await _measure(channel, peer, rounds)
    finally:
        other.stdin.close()
        with suppress(ProcessLookupError):
            await asyncio.wait_for(other.wait(), 10)


async def _measure(channel: LibP2PChannel, peer: str, rounds: int) -> list[float]:
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    channel.listen(lambda _peer, message: arrived.put_nowait(message), lambda peer, reason: None)
    found = []
    for position in range(rounds + 20):
        step = Step("s", 1, b"k", 0, position, 1, True, "f32", body=BODY)
        start = perf_counter()
        await channel.send(peer, step)
        await arrived.get()
        found.append((perf_counter() - start) / 2)
    return found[20:]


if __name__ == "__main__":
    uvloop.run(serve())
