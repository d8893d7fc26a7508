"""simulate: requests arriving at a plan over time - discrete events, queues, KV room, leavers."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planner.cost.cost_model import BATCH_CAP, CostModel
from planner.problem import Problem
from swarm.plan import Pipeline, Plan

TOKENS_AT_ONCE = 8  # decode steps between two looks at the queue, with continuous batching


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the trace."""

    arrival_seconds: float
    input_tokens: float
    output_tokens: float

    def __post_init__(self) -> None:
        if self.arrival_seconds < 0 or min(self.input_tokens, self.output_tokens) < 1:
            raise ValueError("a request has a time of at least 0 and tokens of at least 1")


@dataclass(frozen=True, slots=True)
class Event:
    """At that second devices leave or (come back to) join."""

    seconds: float
    leave: tuple[str, ...] = ()
    join: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """One request's end: seconds from arrival to last token; infinite if it was never served."""

    request: Request
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What the simulation saw."""

    served: tuple[Served, ...]
    span_seconds: float  # until the last answer

    def percentile(self, share: float) -> float:
        """Latency in seconds that so large a share of requests stays within."""
        ordered = sorted(one.seconds for one in self.served)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    def attainment(self, deadlines: Sequence[float]) -> float:
        """Share of requests within their deadline, in order of the trace."""
        met = [one.seconds <= d for one, d in zip(self.served, deadlines, strict=True)]
        return sum(met) / len(met)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all served requests over the whole span."""
        done = [one.request.output_tokens for one in self.served if math.isfinite(one.seconds)]
        return sum(done) / self.span_seconds if self.span_seconds else 0.0


def poisson_trace(
    rate: float, count: int, inputs: Sequence[float], outputs: Sequence[float], seed: int
) -> list[Request]:
    """Requests at random times of that rate per second, lengths drawn from the lists."""
    draw, at, trace = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(rate)
        trace.append(Request(at, draw.choice(inputs), draw.choice(outputs)))
    return trace


Alone = Callable[[Pipeline, Request], float]


@dataclass
class Server:
    """One pipeline at work: its queue, who is in it, and when it is free."""

    pipeline: Pipeline
    room: float  # sequences
    alive: bool = True
    free_at: float = 0.0
    queue: list[int] = field(default_factory=list)
    active: dict[int, float] = field(default_factory=dict)  # request -> tokens left
    era: int = 0  # grows when the pipeline dies, so that its old events are ignored

    @property
    def load(self) -> int:
        """Requests waiting or being served."""
        return len(self.queue) + len(self.active)


class Simulation:
    """One run of a trace through a plan."""

    def __init__(
        self, cost: CostModel, plan: Plan, *, batching: bool, alone: Alone | None = None
    ) -> None:
        """`alone` gives seconds of a request alone in a pipeline, else the cost model does."""
        self.cost = cost
        self.batching = batching
        self.alone = alone or self._by_cost
        room = cost.room if batching else _room_for_one
        self.servers = [Server(p, min(room(p), BATCH_CAP)) for p in plan.pipelines]
        load = cost.workload
        standing = Request(0.0, load.input_tokens, load.output_tokens)
        self.speeds = [self.alone(p, standing) for p in plan.pipelines]
        self.events: list[tuple[float, int, str, tuple[object, ...]]] = []
        self.order = itertools.count()
        self.done: dict[int, float] = {}
        self.gone: set[str] = set()
        self.unassigned: list[int] = []
        self.trace: Sequence[Request] = ()
        self._alone: dict[tuple[int, float, float], float] = {}
        self._steps: dict[tuple[int, int], float] = {}
        self._prompts: dict[tuple[int, float], float] = {}

    def run(self, trace: Sequence[Request], events: Iterable[Event] = ()) -> Report:
        """Play all arrivals and events; requests that no pipeline can serve never end."""
        self.trace = trace
        for number, request in enumerate(trace):
            self._at(request.arrival_seconds, "arrive", number)
        for event in events:
            self._at(event.seconds, "change", event)
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            getattr(self, f"_{kind}")(now, *what)
        ends = [self.done.get(n, math.inf) for n in range(len(trace))]
        served = [Served(r, end - r.arrival_seconds) for r, end in zip(trace, ends, strict=True)]
        return Report(tuple(served), max((e for e in ends if math.isfinite(e)), default=0.0))

    def _at(self, seconds: float, kind: str, *what: object) -> None:
        heapq.heappush(self.events, (seconds, next(self.order), kind, what))

    def _arrive(self, now: float, number: int) -> None:
        living = [i for i, server in enumerate(self.servers) if server.alive and server.room >= 1]
        if not living:
            self.unassigned.append(number)
            return
        index = min(living, key=lambda i: (self._expected(i, now), i))
        self.servers[index].queue.append(number)
        self._start(now, index)

    def _expected(self, index: int, now: float) -> float:
        """Seconds until a request sent there now would end, roughly: the router's view."""
        server = self.servers[index]
        if self.batching:
            crowd = max(0.0, server.load + 1 - server.room) / server.room
            return self.speeds[index] * (1 + crowd) * (1 + server.load / max(server.room, 1))
        return max(0.0, server.free_at - now) + (len(server.queue) + 1) * self.speeds[index]

    def _start(self, now: float, index: int) -> None:
        server = self.servers[index]
        if server.free_at > now or not server.alive:
            return
        (self._start_batch if self.batching else self._start_one)(now, index)

    # ---- no batching, as in the paper: a replica serves one request at a time

    def _start_one(self, now: float, index: int) -> None:
        server = self.servers[index]
        if not server.queue:
            return
        number = server.queue.pop(0)
        server.active = {number: 0.0}
        server.free_at = now + self._alone_seconds(index, self.trace[number])
        self._at(server.free_at, "finish", index, server.era)

    def _finish(self, now: float, index: int, era: int) -> None:
        server = self.servers[index]
        if era != server.era:
            return
        for number in server.active:
            self.done[number] = now
        server.active = {}
        self._start(now, index)

    def _alone_seconds(self, index: int, request: Request) -> float:
        key = (index, request.input_tokens, request.output_tokens)
        if key not in self._alone:
            self._alone[key] = self.alone(self.servers[index].pipeline, request)
        return self._alone[key]

    def _by_cost(self, pipeline: Pipeline, request: Request) -> float:
        return request_seconds(self.cost.problem, pipeline, request)

    # ---- continuous batching: prefills join between decode steps

    def _start_batch(self, now: float, index: int) -> None:
        server = self.servers[index]
        fresh = 0.0
        while server.queue and len(server.active) < server.room:
            number = server.queue.pop(0)
            server.active[number] = self.trace[number].output_tokens
            fresh += self._prompt_seconds(index, self.trace[number].input_tokens)
        if not server.active:
            return
        steps = max(1.0, min(TOKENS_AT_ONCE, *server.active.values()))
        server.free_at = now + fresh + steps * self._step_seconds(index, len(server.active))
        self._at(server.free_at, "step", index, server.era, steps)

    def _step(self, now: float, index: int, era: int, steps: float) -> None:
        server = self.servers[index]
        if era != server.era:
            return
        for number in list(server.active):
            server.active[number] -= steps
            if server.active[number] <= 0:
                del server.active[number]
                self.done[number] = now
        self._start(now, index)

    def _step_seconds(self, index: int, batch: int) -> float:
        """Seconds in which every one of the batch gets a token: groups chase each other."""
        if (index, batch) not in self._steps:
            self._steps[index, batch] = cycle_seconds(
                self.cost, self.servers[index].pipeline, batch
            )
        return self._steps[index, batch]

    def _prompt_seconds(self, index: int, tokens: float) -> float:
        """The slowest stage's share of a prefill: prompts pipeline through the stages."""
        if (index, tokens) not in self._prompts:
            pipeline = self.servers[index].pipeline
            cost = CostModel(_with_load(self.cost.problem, tokens, 1.0))
            self._prompts[index, tokens] = float(cost.prefill_times(pipeline).max())
        return self._prompts[index, tokens]

    # ---- peers come and go

    def _change(self, now: float, event: Event) -> None:
        self.gone = (self.gone | set(event.leave)) - set(event.join)
        for index, server in enumerate(self.servers):
            devices = {s.device for stage in server.pipeline.stages for s in stage.shards}
            if server.alive and devices & self.gone:
                self._kill(now, server)
            elif not server.alive and not devices & self.gone:
                server.alive, server.free_at = True, now
                self._start(now, index)
        waiting, self.unassigned = self.unassigned, []
        for number in waiting:
            self._arrive(now, number)

    def _kill(self, now: float, server: Server) -> None:
        """Its requests start again elsewhere."""
        lost = [*server.active, *server.queue]
        server.alive, server.era = False, server.era + 1
        server.active, server.queue, server.free_at = {}, [], now
        self.unassigned += lost


def _room_for_one(pipeline: Pipeline) -> float:
    return 1.0


def cycle_seconds(cost: CostModel, pipeline: Pipeline, batch: int) -> float:
    """Seconds until each of `batch` sequences has one more token, in the best number of groups."""
    most = max(1, min(batch, 4 * len(pipeline.stages)))
    groups = np.arange(1.0, most + 1)
    sizes = batch / groups
    times = cost.decode_times(pipeline, sizes)
    cycle = np.maximum(times.sum(axis=0) + cost.hops(pipeline, sizes), groups * times.max(axis=0))
    return float(cycle.min())


def _with_load(problem: Problem, input_tokens: float, output_tokens: float) -> Problem:
    load = replace(problem.workload, input_tokens=input_tokens, output_tokens=output_tokens)
    return replace(problem, workload=load)


def request_seconds(problem: Problem, pipeline: Pipeline, request: Request) -> float:
    """Seconds of one request of its own lengths, alone in the pipeline."""
    load = _with_load(problem, request.input_tokens, request.output_tokens)
    return CostModel(load).latency(pipeline)
