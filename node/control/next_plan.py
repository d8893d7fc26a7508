"""The elected planner's work: from the capabilities at hand to a published plan document."""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.live_problem import as_float32, live_problem, with_dtypes, without_mixed_stages
from planner.problem import Problem
from planner.replanning.migration import Holdings
from planner.replanning.replan import replan
from planner.stop import StopRule
from swarm.errors import DoesNotFit
from swarm.formatting import printable, short_id
from swarm.hardware import WIDEST, WIDTHS
from swarm.model_spec import PLANNED_TOKENS, ModelSpec
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import TERM_CAP, Advert, Capability, StageAdvert
from swarm.wire.messages import ROUTE_CAP

SEARCH_SECONDS = 5.0
WORD_CAP = 128  # characters of an id or name in a plan document
SHUT_SHOWN = 3  # peers in a reason
REASON_CAP = 500  # characters of the reason why there is no plan
LEFT_OUT_CAP = 64  # peers whose failures a plan tells of
PIPELINES_CAP = 4096
SHARDS_CAP = 8192  # devices in one plan


class Demand(NamedTuple):
    """What a plan wants of one device: read from it once, and checked by everybody."""

    device: str
    peer: str
    number: int  # of the device at its peer
    heads: int  # KV heads, in all layers together
    blocks: int  # MLP blocks

    @classmethod
    def of(cls, stage: Stage, shard: Shard) -> "Demand":
        """What the stage's part in the plan makes a device hold."""
        kv, mlp = stage.layers * shard.kv, stage.layers * shard.mlp
        return cls(shard.device, shard.peer, shard.index, kv, mlp)


@dataclass(frozen=True, slots=True)
class PlanDocument:
    """A plan with its circumstances: what a plan reference points to."""

    plan: Plan
    term: int
    planner: str
    model: str  # digest
    objective: str = "latency"
    reason: str = ""  # why there is no pipeline, if there is none
    left_out: Mapping[str, str] = field(default_factory=dict)  # peers that failed, and how
    demands: tuple["Demand", ...] = field(init=False, repr=False, compare=False)

    _NAMES: ClassVar = ("term", "planner", "model", "objective", "reason", "left_out")

    def __post_init__(self) -> None:
        if type(self.term) is not int or not 0 <= self.term <= TERM_CAP:
            raise ValueError(f"the term of a plan document is a number up to {TERM_CAP}")
        for word, cap in (
            (self.planner, WORD_CAP),
            (self.model, WORD_CAP),
            (self.objective, WORD_CAP),
            (self.reason, REASON_CAP),
            *((word, WORD_CAP) for pair in self.left_out.items() for word in pair),
        ):
            _require_readable(word, cap)
        if len(self.left_out) > LEFT_OUT_CAP:
            raise ValueError(f"a plan names at most {LEFT_OUT_CAP} peers that are left out")
        _require_bounded(self.plan)
        demands = tuple(Demand.of(stage, shard) for stage, shard in self.plan.shards())
        for demand in demands:
            _require_readable(demand.device, WORD_CAP)
            if not demand.peer or demand.number < 0:
                raise ValueError("a plan names every device as <peer>/<index>")
        object.__setattr__(self, "demands", demands)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        values = {
            "plan": self.plan.to_json(),
            "term": self.term,
            "planner": self.planner,
            "model": self.model,
            "objective": self.objective,
            "reason": self.reason,
            "left_out": dict(self.left_out),
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def of_bytes(cls, data: bytes) -> "PlanDocument":
        """Read JSON with at least these fields; raises ValueError on anything else.

        Fields that this version does not know are ignored; the document's bytes keep them.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            plan = Plan.from_json(values["plan"])
            known = {name: values[name] for name in cls._NAMES if name in values}
            return cls(plan=plan, **known)
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"not a plan document: {error!r}") from error


def _require_readable(word: object, cap: int) -> None:
    if not isinstance(word, str) or len(word) > cap or not word.isprintable():
        raise ValueError(f"a plan's words are printable and at most {cap} characters long")


def _require_bounded(plan: Plan) -> None:
    shards = sum(len(stage.shards) for line in plan.pipelines for stage in line.stages)
    longest = max((len(line.stages) for line in plan.pipelines), default=0)
    if len(plan.pipelines) > PIPELINES_CAP or longest > ROUTE_CAP or shards > SHARDS_CAP:
        raise ValueError(
            f"a plan has at most {PIPELINES_CAP} pipelines, {ROUTE_CAP} stages in each, "
            f"and {SHARDS_CAP} shards"
        )


def next_plan(
    spec: ModelSpec,
    capabilities: Mapping[str, Capability],
    current: Plan | None,
    *,
    may_move: bool = True,
    reserves: Sequence[Stage] = (),
) -> tuple[Plan, str]:
    """The plan for these peers, and a reason if it is empty.

    `reserves` are stages that peers serve beside the plan in force.

    Whole pipelines stay and broken ones are repaired; with `may_move` a plan that is better by
    10 % net of loading may replace them. Devices in no pipeline form further ones. Devices of
    unlike dtypes share a stage, in float32, only if there is no plan without such stages.
    """
    kept = without_mixed_stages(current, capabilities) if current else Plan(())
    held = Holdings(kept, tuple(reserves))
    plan, reason = _plan_of(spec, capabilities, held, may_move=may_move)
    devices = (device for capability in capabilities.values() for device in capability.devices)
    if not plan.pipelines and any(device.dtype != WIDEST for device in devices):
        held = Holdings(current or Plan(()))
        plan, _ = _plan_of(spec, as_float32(capabilities), held, may_move=may_move)
    if not plan.pipelines:
        return plan, _reason_of_refused_group(spec, capabilities) or reason
    return with_dtypes(plan, capabilities), ""


def _plan_of(
    spec: ModelSpec,
    capabilities: Mapping[str, Capability],
    held: Holdings,
    *,
    may_move: bool,
) -> tuple[Plan, str]:
    deadline = time.monotonic() + SEARCH_SECONDS

    def stop(best_cost: float) -> bool:
        return time.monotonic() > deadline

    problem = problem_of(spec, capabilities)
    try:
        base = _base_of(problem, held, stop, may_move=may_move)
    except DoesNotFit as error:
        base = Plan(_whole_of(held.plan, problem))
        if not base.pipelines:
            return _with_shared_ends(problem, stop, str(error))
    return Plan((*base.pipelines, *_added(spec, capabilities, base, held, stop))), ""


def _added(
    spec: ModelSpec,
    capabilities: Mapping[str, Capability],
    base: Plan,
    held: Holdings,
    stop: StopRule,
) -> tuple[Pipeline, ...]:
    """Further pipelines of the devices that the base leaves idle; nothing if they are spares.

    What they hold of pipelines that are given up, or broken, is used where that is as good.
    """
    used = {shard.device for _, shard in base.shards()}
    idle = {peer: _without(peer, capability, used) for peer, capability in capabilities.items()}
    if not any(capability.devices for capability in idle.values()):
        return ()
    gone = (p for p in held.plan.pipelines if not used & devices_of(*p.stages))
    free = tuple(stage for stage in held.reserves if not used & devices_of(stage))
    with suppress(DoesNotFit):
        return _made_of(problem_of(spec, idle), Holdings(Plan(tuple(gone)), free), stop).pipelines
    return ()


def _made_of(problem: Problem, held: Holdings, stop: StopRule) -> Plan:
    """A plan around what devices hold, or from nothing if that is nothing; raises DoesNotFit."""
    if problem.devices and (held.plan.pipelines or held.reserves):
        return replan(problem, held, stop).plan
    return best_plan(problem, stop)


def _reason_of_refused_group(spec: ModelSpec, capabilities: Mapping[str, Capability]) -> str:
    """Why there is no plan, if there were one if only all machines could be dialled; else empty."""
    shut = sorted(peer for peer, each in capabilities.items() if not each.reachable)
    if not shut:
        return ""
    opened = {peer: replace(each, reachable=True) for peer, each in capabilities.items()}
    if not _plan_of(spec, opened, Holdings(Plan(())), may_move=False)[0].pipelines:
        return ""
    names = ", ".join(short_id(printable(peer)) for peer in shut[:SHUT_SHOWN])
    return (
        "The model fits only if machines of several homes compute layers together, and nobody"
        f" outside can dial {names}{' and others' if shut[SHUT_SHOWN:] else ''}. Let routers"
        " forward a port to them: --port 4001 --announce ADDRESS:4001."
    )


def _base_of(problem: Problem, held: Holdings, stop: StopRule, *, may_move: bool) -> Plan:
    """What the plan is built around: whole pipelines stay, unless all are whole and may move.

    Of several pipelines the quickest stays even then, so that somebody serves while others load.
    """
    whole = _whole_of(held.plan, problem)
    if whole and (not may_move or len(whole) < len(held.plan.pipelines)):
        return Plan(whole)
    moved = _made_of(problem, held, stop)
    if len(whole) < 2 or set(moved.pipelines) & set(whole):
        return moved
    return Plan((min(whole, key=CostModel(problem).latency),))


def _whole_of(plan: Plan, problem: Problem) -> tuple[Pipeline, ...]:
    return tuple(pipeline for pipeline in plan.pipelines if _is_whole(pipeline, problem))


def _with_shared_ends(problem: Problem, stop: StopRule, reason: str) -> tuple[Plan, str]:
    """A plan where ranks divide the ends that they cannot hold whole; else empty, and why."""
    eased = replace(problem, model=replace(problem.model, shared_ends=True))
    try:
        plan = best_plan(eased, stop)
    except DoesNotFit:
        return Plan(()), reason
    whole = CostModel(problem)

    def marked(stage: Stage) -> Stage:
        return stage if whole.held(stage) >= 1 else replace(stage, shares_ends=True)

    return Plan(tuple(Pipeline(tuple(map(marked, p.stages))) for p in plan.pipelines)), ""


def problem_with(
    document: PlanDocument, capabilities: Mapping[str, Capability], *, spec: ModelSpec
) -> str:
    """What a plan demands that this model or these peers do not have; empty if nothing.

    A plan speaks of all layers, KV heads and MLP blocks of our model, once, and of devices that are
    known and hold at least the weights of their shards.
    """
    plan = document.plan
    if document.model != spec.digest or any(p.layers != spec.layers for p in plan.pipelines):
        return "it is for another model"
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    heads, blocks = spec.kv_heads, spec.mlp_blocks
    if not all(_is_full(stage, heads, blocks) for stage in stages):
        return "its stages do not hold every head and block once"
    a_head = spec.attention_parameters / spec.kv_heads
    a_block = spec.mlp_parameters / spec.mlp_blocks
    for name, peer, number, heads, blocks in document.demands:
        for device in capabilities[peer].devices if peer in capabilities else ():
            if device.index == number:
                break
        else:
            return f"nobody knows its device {name}"
        # Weights of the layers that it holds, without ends and KV.
        if (heads * a_head + blocks * a_block) * device.weight_bytes > device.memory_bytes:
            return f"its device {name} has too little memory"
    return ""


def reserves_of(
    spec: ModelSpec, adverts: Iterable[Advert], able: Collection[str], plan: Plan | None
) -> tuple[Stage, ...]:
    """Stages that able peers serve beside the plan: what is left of earlier plans, or was free."""
    taken = {shard.device for _, shard in plan.shards()} if plan else set()
    found: list[Stage] = []
    for advert in adverts:
        for each in advert.stages:
            stage = _stage_served(each)
            if stage is None or stage.end > spec.layers:
                continue
            is_ours = {shard.peer for shard in stage.shards} <= set(able)
            is_free = not taken & devices_of(stage)
            if is_ours and is_free and _is_full(stage, spec.kv_heads, spec.mlp_blocks):
                taken |= devices_of(stage)
                found.append(stage)
    return tuple(found)


def _stage_served(advert: StageAdvert) -> Stage | None:
    """What a peer says it serves, unless that is nonsense."""
    members = advert.members
    try:
        shards = tuple(Shard(f"{m.peer}/{m.device}", m.kv, m.mlp) for m in members)
    except ValueError:
        return None
    return Stage(advert.start, advert.end, shards)


def _is_full(stage: Stage, heads: int, blocks: int) -> bool:
    for shard in stage.shards:  # thousands of them in a crowd's plan, which everybody checks
        heads -= shard.kv
        blocks -= shard.mlp
    return not stage.holders and heads == blocks == 0


def problem_of(spec: ModelSpec, capabilities: Mapping[str, Capability]) -> Problem:
    """The planner's problem for the peers at hand; sizes are of the widest dtype among them."""
    devices = (device for capability in capabilities.values() for device in capability.devices)
    width = max((WIDTHS[device.dtype] for device in devices), default=WIDTHS[WIDEST])
    return live_problem(
        spec,
        capabilities,
        bytes_per_weight=width,
        bytes_per_value=width,
        context=min(PLANNED_TOKENS, spec.context),
    )


def _is_whole(pipeline: Pipeline, problem: Problem) -> bool:
    """Whether every device of it is here and still has room: one may be back with less memory."""
    there = problem.index_of
    is_here = all(shard.device in there for stage in pipeline.stages for shard in stage.shards)
    return is_here and CostModel(problem).room(pipeline) >= 1


def devices_of(*stages: Stage) -> set[str]:
    """Every device that has a part in these stages."""
    return {shard.device for stage in stages for shard in stage.shards}


def _without(peer: str, capability: Capability, used: set[str]) -> Capability:
    idle = [device for device in capability.devices if f"{peer}/{device.index}" not in used]
    return replace(capability, devices=idle)
