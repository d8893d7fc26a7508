"""replan: from the plan in force to the next one after peers left, joined or changed.

Local repair first: whole pipelines stay, broken ones have their lost layers taken over by
neighbours or spares. A full search replaces that only if it pays net of loading.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.atoms import Atom
from planner.cost import CostModel
from planner.criterion import latency_criterion
from planner.moved import load_seconds, moved_bytes, settled_in_place
from planner.pool import Pool, value_of
from planner.problem import Problem
from planner.rivals import plan_value
from planner.search import make_plan
from planner.shares import Group, share_out
from planner.stop import StopRule
from swarm.errors import DoesNotFit
from swarm.plan import Pipeline, Plan, Stage

WORTH_MOVING = 0.10  # a full search must gain this much, net of loading (design, section 9)
NO_LOSS = 0.01  # value given up, at most, for a pipeline more
ROUNDS = 2  # over all gaps of a broken pipeline
PLAN_LIFE_SECONDS = 3600.0
SHORT_LIFE_SECONDS = 1800.0  # layers on peers that stay no longer want a second holder


@dataclass(frozen=True, slots=True)
class Replanned:
    """The next plan and what it costs to get there."""

    plan: Plan
    moved: dict[str, float]  # bytes by device
    value: float  # of the objective, higher is better
    net_value: float  # of it, what is left over the plan's life while pipelines load
    net_flow: float  # tokens per second likewise: what counts between plans of equal value
    repaired: bool  # by local repair rather than by a full search

    @property
    def moved_bytes(self) -> float:
        """Bytes that all devices load."""
        return sum(self.moved.values())


def replan(
    problem: Problem, current: Plan, stop: StopRule, seed: int = 0, *, search: bool = True
) -> Replanned:
    """The best next plan for the problem as it is now, given the plan in force.

    Value counts net of loading over the plan's expected life; fewer layers that hang on one
    short-lived peer win; more bytes are moved only for a gain of a tenth, net of loading.
    Raises DoesNotFit if nothing fits.
    """
    pool = Pool(problem, CostModel(problem))
    repaired = [_judged(pool, current, plan, repaired=True) for plan in repairs(pool, current)]
    best = _worth_it(problem, repaired)
    if best is not None and (not search or stop(-best.value)):
        return best
    try:
        found = _judged(pool, current, make_plan(problem, stop, seed), repaired=False)
    except DoesNotFit:
        if best is None:
            raise
        return best
    return found if best is None or _beats(problem, found, best) else best


def _worth_it(problem: Problem, made: Sequence[Replanned]) -> Replanned | None:
    """The plan that moves least, unless one that moves more gains enough."""
    best: Replanned | None = None
    for one in sorted(made, key=lambda r: r.moved_bytes):
        if best is None or _beats(problem, one, best):
            best = one
    return best


def _beats(problem: Problem, one: Replanned, best: Replanned) -> bool:
    thin = thin_layers(problem, one.plan) - thin_layers(problem, best.plan)
    if thin or not best.value:
        return thin < 0 or one.value > 0
    more = one.net_flow > best.net_flow * (1 + WORTH_MOVING)
    gains = one.net_value > best.net_value * (1 + WORTH_MOVING)
    return gains or (more and one.net_value >= best.net_value * (1 - NO_LOSS))


def _judged(pool: Pool, current: Plan, plan: Plan, *, repaired: bool) -> Replanned:
    problem = pool.problem
    plan = settled_in_place(problem, current, plan)
    moved = moved_bytes(problem, current, plan)
    kept = [_kept_share(problem, moved, pipeline) for pipeline in plan.pipelines]
    values = [value_of(pool.cost, p, _objective(problem)) for p in plan.pipelines]
    flows = [pool.cost.throughput(pipeline) for pipeline in plan.pipelines]
    net = [value * share for value, share in zip(values, kept, strict=True)]
    return Replanned(
        plan,
        moved,
        value=plan_value(pool.cost, plan, _objective(problem)),
        net_value=max(net, default=0.0) if problem.objective == "latency" else sum(net),
        net_flow=sum(flow * share for flow, share in zip(flows, kept, strict=True)),
        repaired=repaired,
    )


def _kept_share(problem: Problem, moved: dict[str, float], pipeline: Pipeline) -> float:
    """The share of the plan's life that is left when a pipeline's devices have loaded."""
    here = {shard.device for stage in pipeline.stages for shard in stage.shards}
    lives = [d.lifetime_seconds for d in problem.devices if d.lifetime_seconds < math.inf]
    seconds = load_seconds(problem, {d: size for d, size in moved.items() if d in here})
    return max(0.0, 1 - seconds / min([PLAN_LIFE_SECONDS, *lives]))


def _objective(problem: Problem) -> str:
    return "latency" if problem.objective == "latency" else "throughput"


def thin_layers(problem: Problem, plan: Plan) -> int:
    """Layers that only one pipeline holds, and there on a short-lived peer."""
    lives = {device.id: device.lifetime_seconds for device in problem.devices}
    safe, holders = [0] * problem.model.layers, [0] * problem.model.layers
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            short = min(lives[shard.device] for shard in stage.shards) < SHORT_LIFE_SECONDS
            for layer in range(stage.start, stage.end):
                holders[layer] += 1
                safe[layer] += not short
    return sum(h < 2 and not s for h, s in zip(holders, safe, strict=True))


# ---- local repair


def repairs(pool: Pool, current: Plan) -> Iterator[Plan]:
    """Plans that keep every whole pipeline: broken ones dropped, mended or balanced anew."""
    here = set(pool.problem.index_of)
    whole: list[Pipeline] = []
    broken: list[Pipeline] = []
    for pipeline in current.pipelines:
        ids = {s.device for stage in pipeline.stages for s in stage.shards}
        fits = ids <= here and pool.cost.room(pipeline) >= 1
        (whole if fits else broken).append(pipeline)
    spares = _spares(pool, current)
    mended, balanced = list(whole), list(whole)
    for pipeline in broken:
        mended += _some(mended_pipeline(pool, pipeline))
        balanced += _some(_balanced(pool, pipeline, spares))
    for pipelines in (mended, balanced, whole):
        if pipelines:
            yield Plan(tuple(pipelines))
    grown = _balanced(pool, None, spares)
    if grown:
        yield Plan((*mended, grown))


def _some(pipeline: Pipeline | None) -> list[Pipeline]:
    return [pipeline] if pipeline else []


def _spares(pool: Pool, current: Plan) -> list[int]:
    used = {shard.device for _, shard in current.shards()}
    return [n for n in pool.devices if pool.problem.devices[n].id not in used]


def mended_pipeline(pool: Pool, broken: Pipeline) -> Pipeline | None:
    """The stages that are left take over lost layers at their edges; nothing else moves."""
    stages = [_survivors(pool, stage) for stage in broken.stages]
    left = [stage for stage in stages if stage is not None]
    if not left:
        return None
    best: tuple[float, Pipeline | None] = (0.0, None)
    for share in (0.5, 0.0, 1.0):
        gaps = [share] * (len(left) - 1)
        pipeline = _closed(left, broken.layers, gaps)
        for _ in range(ROUNDS):
            gaps, pipeline = _better_gaps(pool, left, broken.layers, gaps)
        value = value_of(pool.cost, pipeline, _objective(pool.problem))
        best = max(best, (value, pipeline), key=lambda pair: pair[0])
    return best[1]


def _better_gaps(
    pool: Pool, left: Sequence[Stage], layers: int, gaps: list[float]
) -> tuple[list[float], Pipeline]:
    """Every gap in turn divided as is best while the others stay."""
    objective = _objective(pool.problem)
    for place in range(len(gaps)):
        width = left[place + 1].start - left[place].end
        tried = [
            [*gaps[:place], part / width, *gaps[place + 1 :]] for part in range(width + 1) if width
        ]
        gaps = max(
            [gaps, *tried],
            key=lambda g: value_of(pool.cost, _closed(left, layers, g), objective),
        )
    return gaps, _closed(left, layers, gaps)


def _survivors(pool: Pool, stage: Stage) -> Stage | None:
    """The stage as its remaining members can serve it, shares dealt anew if one is gone."""
    known = pool.problem.index_of
    members = tuple(known[s.device] for s in stage.shards if s.device in known)
    if len(members) == len(stage.shards):
        return stage
    if not members:
        return None
    criterion = latency_criterion(pool.problem)
    shards = share_out(pool.problem, Group(members), criterion, stage.layers)
    return replace(stage, shards=shards) if shards else None


def _closed(left: Sequence[Stage], layers: int, gaps: Sequence[float]) -> Pipeline:
    """Stages with the gaps between them divided: that share of each to the stage before."""
    edges = [0]
    for (before, after), share in zip(itertools.pairwise(left), gaps, strict=True):
        edges.append(before.end + round((after.start - before.end) * share))
    edges.append(layers)
    closed = [
        replace(stage, start=a, end=b) for stage, a, b in zip(left, edges, edges[1:], strict=False)
    ]
    return Pipeline(tuple(closed))


def _balanced(pool: Pool, broken: Pipeline | None, spares: Sequence[int]) -> Pipeline | None:
    """A pipeline of the stages' groups that are left and all spares, layers balanced anew."""
    atoms: list[Atom | None] = [pool.atom((spare,)) for spare in spares]
    stages = [_survivors(pool, stage) for stage in broken.stages] if broken else []
    for stage in stages:
        if stage is not None:
            members = tuple(pool.problem.index_of[s.device] for s in stage.shards)
            atoms.append(pool.adopt(members, stage.shards))
    usable = [atom for atom in atoms if atom is not None]
    return pool.build(usable, _objective(pool.problem)) if usable else None
