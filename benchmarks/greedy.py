"""What one client that opens all it can costs eight others: `python -m benchmarks.greedy`.

Two nodes on loopback; every client is a libp2p peer of its own. The eight ask again and again, in
turns alone and beside a greedy one, which holds as many long sessions as the nodes let it.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter

import uvloop

from benchmarks.models import model_folder, prompt_ids
from benchmarks.report import Gate, Report, ratio_of
from benchmarks.small_swarm import SmallSwarm, small_swarm
from client.async_client import Client
from swarm.checkpoint.folder import read_spec
from swarm.errors import SwarmError
from swarm.model_spec import BUILT_IN

CLIENTS = 8
PROMPT, NEW = 16, 32
GREEDY_PROMPT, GREEDY_NEW = 1024, 512
SLOWDOWN_GATE = 2.0
START_SECONDS = 90.0  # for the greedy process to import, to join and to hold what it can
HELD = 16  # sessions that have said something, before anything is measured
HOLDING = b"holding\n"


async def ask_again_and_again(client: Client, seed: int, until: float) -> list[float]:
    """One honest client: seconds per token of each of its answers."""
    seconds = []
    while perf_counter() < until:
        start = perf_counter()
        answer = await client.generate(
            prompt_ids(PROMPT, seed), max_tokens=NEW, temperature=0.0, timeout_seconds=120
        )
        seconds.append((perf_counter() - start) / len(answer.token_ids))
    return seconds


async def be_greedy(invite: str, sessions: int) -> None:
    """Hold so many long sessions at once, until the process is ended."""
    async with Client(invite) as client:
        await _hold_all(client, sessions)


async def _hold_all(client: Client, sessions: int) -> None:

    held: set[int] = set()

    async def hold(seed: int) -> None:
        while True:
            with suppress(SwarmError):
                stream = client.stream(
                    prompt_ids(GREEDY_PROMPT, seed),
                    max_tokens=GREEDY_NEW,
                    temperature=0.0,
                    timeout_seconds=60,
                )
                async for _piece in stream:
                    if seed not in held:
                        held.add(seed)
                        if len(held) == min(HELD, sessions):
                            print(HOLDING.decode(), end="", flush=True)

    await asyncio.gather(*(hold(1000 + seed) for seed in range(sessions)))


async def median_seconds(clients: list[Client], seconds: float) -> float:
    """The median of seconds per token, over all answers of all clients."""
    until = perf_counter() + seconds
    asked = (ask_again_and_again(each, seed, until) for seed, each in enumerate(clients))
    found = await asyncio.gather(*asked)
    return median(each for some in found for each in some)


async def measure(report: Report, options: argparse.Namespace) -> bool:
    """All rounds in one swarm; True if the gate holds."""
    folder = model_folder(BUILT_IN, Path())
    alone, beside = [], []
    async with small_swarm(read_spec(folder, BUILT_IN), folder) as swarm, AsyncExitStack() as stack:
        clients = await _clients(swarm, stack)
        await median_seconds(clients, 2.0)
        for number in range(options.rounds):
            alone.append(await median_seconds(clients, options.seconds))
            async with greedy_process(await swarm.members[0].invite(), options.sessions):
                before = swarm.cpu_seconds()
                beside.append(await median_seconds(clients, options.seconds))
                after = swarm.cpu_seconds()
            report.add("clients", f"round {number + 1}", beside[-1] / alone[-1], "x time")
            for kind, spent in after.items():
                report.add("CPU", kind, (spent - before[kind]) / options.seconds, "cores")
    ratio = ratio_of(beside, alone)
    report.add("clients", "time per token, beside / alone", ratio, "x time", Gate(SLOWDOWN_GATE))
    return ratio <= SLOWDOWN_GATE


async def _clients(swarm: SmallSwarm, stack: AsyncExitStack) -> list[Client]:
    invite = await swarm.members[0].invite()
    return [await stack.enter_async_context(Client(invite)) for _ in range(CLIENTS)]


@asynccontextmanager
async def greedy_process(invite: str, sessions: int) -> AsyncIterator[None]:
    """Hold a greedy client in a process that takes only the time that nobody else wants."""
    words = ("-m", "benchmarks.greedy", "--sessions", str(sessions), "--be-greedy", invite)
    greedy = await asyncio.create_subprocess_exec(
        *("nice", "-n", "19", sys.executable, *words), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert greedy.stdout is not None
        said = await asyncio.wait_for(greedy.stdout.readline(), START_SECONDS)
        if said != HOLDING:
            raise RuntimeError("the greedy client ended before it held anything")
        yield
    finally:
        greedy.terminate()
        await greedy.wait()


def main() -> int:
    """Measure, print the table, and say by the exit code whether the gate holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=200, help="that the greedy client wants")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--be-greedy", metavar="INVITE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_greedy:
        uvloop.run(be_greedy(options.be_greedy, options.sessions))
    report = Report("One greedy client beside eight others")
    holds = uvloop.run(measure(report, options))
    report.show()
    report.write(options.json)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
