"""Links of peers of the version before: measured by questions with large answers."""

import asyncio
import time

from node.network.link_probe import LinkMeasurement
from swarm.errors import PeerRefused
from swarm.p2p.channel import Channel
from swarm.p2p.rate_limit import Budget

QUESTION = "probe"
ECHOES = 10
SIZE_BYTES = 8  # of the number at the start of a question: how many bytes to send back
LARGE_BYTES = 1_000_000
MOST_ROUNDS = 5  # of a megabyte: as long as they get faster, within the budget of such a peer
STILL_FASTER = 1.1
ANSWER_SECONDS = 10.0
BYTES_PER_SECOND = 64 * 1024  # for one peer
BURST_BYTES = 8 * 2**20


def answer_link_questions(channel: Channel) -> None:
    """Let others measure the link to us: as many bytes back as they ask for."""

    of_one = Budget(BYTES_PER_SECOND, BURST_BYTES)
    of_all = Budget(10 * BYTES_PER_SECOND, 8 * BURST_BYTES)

    async def answer(peer: str, payload: bytes) -> bytes:
        size = min(int.from_bytes(payload[:SIZE_BYTES], "big"), LARGE_BYTES)
        if not (of_one.takes(peer, size) and of_all.takes("all", size)):
            raise PeerRefused("You measure too much.", retry_after_seconds=60.0)
        return bytes(size)

    channel.answer(QUESTION, answer)


async def measure_by_questions(channel: Channel, peer: str) -> LinkMeasurement:
    """Measure the link to a peer, who learns nothing from it; raises PeerError.

    The connection is slow until it has found its pace: the last transfers count.
    """
    round_trip = min([await _timed(channel, peer, 0) for _ in range(ECHOES)])
    rates = [0.0]
    for _ in range(MOST_ROUNDS):
        seconds = await _timed(channel, peer, LARGE_BYTES) - round_trip
        rates.append(LARGE_BYTES / max(seconds, 1e-6))
        if rates[-1] < STILL_FASTER * rates[-2]:
            break
        await asyncio.sleep(0)
    return LinkMeasurement(round_trip, max(rates))


async def _timed(channel: Channel, peer: str, size: int) -> float:
    start = time.perf_counter()
    question = size.to_bytes(SIZE_BYTES, "big")
    await channel.ask(peer, QUESTION, question, timeout_seconds=ANSWER_SECONDS)
    return time.perf_counter() - start
