"""Scenarios: one misfortune each, by name, while some clients ask without end."""

import asyncio
import random
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from benchmarks.chaos.cluster import HOST, Cluster, Seat, half, open_cluster, sessions_held
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.ground import Loopback
from benchmarks.chaos.streams import TIMEOUT_SECONDS, Streams, expected_answers
from benchmarks.chaos.telling import Pauses, tell_remains, tell_streams
from benchmarks.report import Gate, Report
from client.async_client import Client
from client.network import open_links
from swarm.dht.board import Board
from swarm.errors import SwarmError
from swarm.invites import Invite
from swarm.records import Advert

TIMES = 3
WRONG = "node1"  # whose clock is
SETTLE_SECONDS = 5.0  # between one misfortune and the next
AFTER_SECONDS = 10.0  # in which streams go on when all is over
LATE_SECONDS = 20.0  # after which a new node joins where nobody holds some layers
AHEAD_SECONDS = 30.0  # for which a clock is wrong
HUNG_GATE = 6.0  # until a hung worker's stage is advertised no more
BACK_GATE = 10.0  # until a node that comes back serves
STANDBY_SECONDS = 150.0
LOOK_SECONDS = 0.2
PATIENT_SECONDS = 180.0  # for streams while a node starts


@dataclass(slots=True)
class Scene:
    """A scenario while it is played."""

    cluster: Cluster
    client: Client
    report: Report
    board: Board
    faults: list[Fault] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def hurt(self, kind: str) -> None:
        """From now on pauses are laid to this."""
        self.faults.append(Fault(kind, perf_counter()))

    async def lose(self, name: str, how: signal.Signals) -> None:
        """End a node for good, unless somebody starts it again."""
        self.cluster.family(name)
        process = self.cluster.there.pop(name).process
        process.send_signal(how)
        await process.wait()

    async def is_offered(self, name: str) -> bool:
        """Whether a node says that it serves, as clients see it."""
        tail = self.cluster.tail(name)
        adverts = await self.board.read(Advert)
        return any(peer.endswith(tail) and each.stages for peer, each in adverts.items())

    async def seconds_until(self, fact: Callable[[], Awaitable[bool]], limit: float) -> float:
        """How long it took; the limit, if it never came."""
        began = perf_counter()
        while perf_counter() - began < limit and not await fact():  # noqa: ASYNC110 - records
            await asyncio.sleep(LOOK_SECONDS)
        return min(perf_counter() - began, limit)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to whom, and what is wanted."""

    what: str
    seats: Callable[[], Mapping[str, Seat]]
    play: Callable[[Scene], Awaitable[None]]
    gates: Mapping[str, Pauses] = field(default_factory=dict)
    clients: int = 3
    timeout_seconds: float = TIMEOUT_SECONDS
    finished: float = 1.0
    before: Callable[[Cluster], Awaitable[None]] | None = None  # before anybody asks


async def play(scenario: Scenario, report: Report, on_line: Callable[[str, str], None]) -> None:
    """Play a scenario while clients ask, and tell what became of them."""
    async with open_cluster(scenario.seats(), on_line, Loopback()) as (cluster, client):
        invite = Invite.parse(await cluster.invite_by_those_there())
        async with open_links(invite, cluster.state) as links:
            scene = Scene(cluster, client, report, links.board)
            expected = await expected_answers(client)
            if scenario.before:
                await scenario.before(cluster)
            streams = Streams(client, expected, scene.faults, scenario.timeout_seconds)
            before, over = len(cluster.terms()), asyncio.Event()
            asking = (streams.run(number, over) for number in range(scenario.clients))
            await asyncio.gather(_played(scenario, scene, over), *asking)
            report.add("plans", "made", len(cluster.terms()) - before, "")
        await asyncio.sleep(Advert.TTL_SECONDS / 3)  # adverts say how many sessions there are
        held = await sessions_held(cluster)
    tell_streams(report, streams.tally, scenario.gates, scenario.finished)
    report.add("left", "sessions", held, "", Gate(0))
    tell_remains(report, cluster.remains)


async def _played(scenario: Scenario, scene: Scene, over: asyncio.Event) -> None:
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        await scenario.play(scene)
        await asyncio.sleep(AFTER_SECONDS)
    finally:
        over.set()


async def _lost_for_a_spare(scene: Scene, kind: str, how: signal.Signals) -> None:
    """One of two that hold a half each ends, a third takes its part; it comes back and waits.

    By turns the one that does not plan, if there is one, and the one that does.
    """
    cluster = scene.cluster
    for number in range(TIMES):
        await cluster.until(lambda: bool(cluster.spares()), "spare")
        await asyncio.sleep(SETTLE_SECONDS)
        planner = cluster.planner()
        by_plans = sorted(cluster.ready(), key=lambda name: name == planner)
        lost = by_plans[-(number % 2)]
        scene.hurt(f"{kind}, its planner" if lost == planner else kind)
        await scene.lose(lost, how)
        await cluster.until_ready(2)
        await cluster.start(lost)


async def _kill_for_a_spare(scene: Scene) -> None:
    await _lost_for_a_spare(scene, "kill of a half", signal.SIGKILL)


async def _leave_for_a_spare(scene: Scene) -> None:
    await _lost_for_a_spare(scene, "leave of a half", signal.SIGTERM)


async def _lone_worker(scene: Scene) -> None:
    """The worker of each node is killed, while another one stands by."""
    for name in scene.cluster.there:
        if worker := scene.cluster.worker(name):
            scene.hurt("worker killed, no replica")
            worker.kill()
        await asyncio.sleep(SETTLE_SECONDS)
        await scene.cluster.until_ready()


async def _until_standbys(cluster: Cluster) -> None:
    """Wait until every node has a worker that stands by, which imports when nothing else runs."""
    await asyncio.gather(*(_until_standby(cluster, name) for name in cluster.there))


async def _until_standby(cluster: Cluster, name: str) -> None:
    """Wait until a node's standby worker has imported everything: its first thread has ended."""
    await cluster.until(lambda: len(cluster.workers(name)) > 1, "safe", STANDBY_SECONDS)
    standby = cluster.workers(name)[-1]
    await cluster.until(lambda: standby.num_threads() > 1, "safe", STANDBY_SECONDS)
    first = min(each.id for each in standby.threads() if each.id != standby.pid)
    importing = Path(f"/proc/{standby.pid}/task/{first}")
    with suppress(psutil.NoSuchProcess):
        await cluster.until(lambda: not importing.exists(), "safe", STANDBY_SECONDS)


async def _nobody_holds(scene: Scene) -> None:
    """All but one of those that hold a half are killed; later a stranger with room joins."""
    cluster = scene.cluster
    scene.hurt("all holders killed")
    for name in [each for each in cluster.there if each != HOST]:
        await scene.lose(name, signal.SIGKILL)
    await asyncio.sleep(LATE_SECONDS)
    began = perf_counter()
    await cluster.start_another(half())
    await cluster.until_ready(2)
    scene.report.add(
        "newcomer", "seconds from its start until it serves", perf_counter() - began, "s"
    )


async def _hung_worker(scene: Scene) -> None:
    """A worker is stopped for good."""
    cluster = scene.cluster
    for _ in range(TIMES):
        name = scene.chance.choice(cluster.ready())
        if (worker := cluster.worker(name)) is None:
            raise SwarmError(f"{name} serves without a worker.")
        scene.hurt("worker hung")
        worker.send_signal(signal.SIGSTOP)

        async def is_withdrawn(name: str = name) -> bool:
            return not await scene.is_offered(name)

        seconds = await scene.seconds_until(is_withdrawn, 4 * HUNG_GATE)
        scene.report.add("worker hung", "withdrawn after", seconds, "s", Gate(HUNG_GATE))
        await cluster.until(lambda: not worker.is_running(), "rid of a hung worker")
        await asyncio.sleep(SETTLE_SECONDS)
        await cluster.until_ready()


async def _disk_full(scene: Scene) -> None:
    """Whoever plans can write no file any more; then a half is lost."""
    cluster = scene.cluster
    planner = cluster.planner() or HOST
    term = max(cluster.terms())
    await cluster.until(lambda: bool(cluster.spares()), "spare")
    node = cluster.family(planner)[0]
    node.rlimit(resource.RLIMIT_FSIZE, (0, node.rlimit(resource.RLIMIT_FSIZE)[1]))
    await asyncio.sleep(SETTLE_SECONDS)
    lost = next(name for name in cluster.ready() if name != planner)
    scene.hurt("disk full, then a half lost")
    await scene.lose(lost, signal.SIGKILL)
    await cluster.until_ready(2)
    scene.report.add("planner", "terms passed", max(cluster.terms()) - term, "")


async def _wrong_clock(scene: Scene) -> None:
    """The clock of one node is ahead for a while."""
    node = scene.cluster.family(WRONG)[0]
    for kind in ("clock ahead", "clock right again"):
        scene.hurt(kind)
        node.send_signal(signal.SIGRTMIN)
        unseen = await _longest_unseen(scene, WRONG, AHEAD_SECONDS)
        scene.report.add(kind, "longest not to be seen", unseen, "s", Gate(HUNG_GATE))


async def _longest_unseen(scene: Scene, name: str, seconds: float) -> float:
    """For how long at most nobody saw a node offer its part, within some time."""
    began = seen = perf_counter()
    longest = 0.0
    while perf_counter() - began < seconds:
        await asyncio.sleep(LOOK_SECONDS)
        offered, now = await scene.is_offered(name), perf_counter()
        longest = max(longest, now - seen)
        seen = now if offered else seen
    return longest


async def _comes_back(scene: Scene) -> None:
    """A node is killed and started again with its state."""
    took = []
    for _ in range(TIMES):
        name = scene.chance.choice(scene.cluster.ready())
        scene.hurt("killed and started again")
        await scene.lose(name, signal.SIGKILL)
        began = perf_counter()
        await scene.cluster.start(name)
        await scene.cluster.until_ready()
        took.append(perf_counter() - began)
        await asyncio.sleep(SETTLE_SECONDS)
    scene.report.add("back", "serves, median", median(took), "s", Gate(BACK_GATE))
    scene.report.add("back", "serves, worst", max(took), "s", Gate(BACK_GATE))


async def _founder_gone(scene: Scene) -> None:
    """The founder, then the planner are killed, the founder for good; later it comes back, too."""
    cluster, report = scene.cluster, scene.report
    scene.hurt("founder killed for good")
    await scene.lose(HOST, signal.SIGKILL)
    await asyncio.sleep(SETTLE_SECONDS)
    await _kill_planner(scene)
    began = perf_counter()
    await cluster.start_another()
    await cluster.until_ready()
    report.add("newcomer", "serves, by the invite of one who is there", perf_counter() - began, "s")
    report.add("client with its state", "first token", await _asks(cluster, cluster.invite), "s")
    began = perf_counter()
    await cluster.start(HOST)
    await cluster.until_ready()
    report.add("founder again", "serves", perf_counter() - began, "s")
    alone = [line for line in cluster.there[HOST].lines if line.startswith("alone: ")]
    report.add("founder again", "said it was alone", len(alone), "", Gate(0))
    unseen = await _unseen_by_the_founder(scene)
    report.add("founder again", "nodes that it does not see", unseen, "", Gate(0))


async def _unseen_by_the_founder(scene: Scene) -> int:
    """How many of those that serve nobody sees who enters where the founder says, after a while."""
    known = await scene.cluster.there[HOST].invite()
    count = len(scene.cluster.there)
    seen = 0
    async with open_links(Invite.parse(known), scene.cluster.state / "stranger") as links:

        async def are_all_there() -> bool:
            nonlocal seen
            seen = len(await links.board.read(Advert))
            return seen >= count

        await scene.seconds_until(are_all_there, Advert.TTL_SECONDS)
    return count - seen


async def _kill_planner(scene: Scene) -> None:
    """Kill whoever planned last and start it again."""
    planner = scene.cluster.planner() or scene.cluster.ready()[0]
    scene.hurt("planner killed")
    await scene.lose(planner, signal.SIGKILL)
    await asyncio.sleep(SETTLE_SECONDS)
    await scene.cluster.start(planner)
    await scene.cluster.until_ready()


async def _asks(cluster: Cluster, invite: str) -> float:
    """Seconds until another client with the same state has its first token."""
    began = perf_counter()
    async with Client(invite, state=cluster.state) as client:
        await client.generate([3, 4, 5], max_tokens=1)
    return perf_counter() - began


def _wholes(count: int) -> dict[str, Seat]:
    return {name: Seat() for name in _names(count)}


def _halves(count: int) -> dict[str, Seat]:
    """So many nodes with room for a half: from the third on they are spare, or serve beside."""
    return {name: half() for name in _names(count)}


def _with_a_clock(seconds: int) -> dict[str, Seat]:
    command = (sys.executable, "-m", "benchmarks.chaos.other_clock", str(seconds))
    return _wholes(3) | {WRONG: Seat(command=command)}


def _names(count: int) -> list[str]:
    return [HOST, *(f"node{number}" for number in range(1, count))]


SCENARIOS = {
    "kill-spare": Scenario(
        "a half is killed, a spare has to load it", lambda: _halves(3), _kill_for_a_spare
    ),
    "leave-spare": Scenario(
        "a half leaves, a spare has to load it", lambda: _halves(3), _leave_for_a_spare
    ),
    "lone-worker": Scenario(
        "the only worker of a half is killed",
        lambda: _halves(2),
        _lone_worker,
        {"worker killed, no replica": (4.0, None)},
        before=_until_standbys,
    ),
    "no-holder": Scenario(
        "nobody holds a half any more, 20 s later a new node joins",
        lambda: _halves(3),
        _nobody_holds,
        timeout_seconds=PATIENT_SECONDS,
    ),
    "hung-worker": Scenario("a worker hangs for good", lambda: _wholes(3), _hung_worker),
    "disk-full": Scenario(
        "no room on the planner's disk, then a half is lost", lambda: _halves(3), _disk_full
    ),
    "clock": Scenario(
        "a clock is 120 s ahead, then right", lambda: _with_a_clock(120), _wrong_clock
    ),
    "clock-hour": Scenario(
        "a clock is an hour ahead, then right", lambda: _with_a_clock(3600), _wrong_clock
    ),
    "comes-back": Scenario(
        "a node is killed and started again", lambda: _wholes(3), _comes_back, clients=1
    ),
    "founder-gone": Scenario(
        "founder and planner are killed in turn, the founder for good",
        lambda: _wholes(3),
        _founder_gone,
    ),
}
