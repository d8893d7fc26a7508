"""make_plan: the door of the planner - a problem, a stop rule and a seed in, a plan out."""

from typing import Protocol

from planner.classes import classes_of
from planner.exact import is_small, least_latency_pipeline
from planner.fill import filled_pipeline
from planner.fit import require_room
from planner.problem import Problem
from swarm.plan import Pipeline, Plan


class StopRule(Protocol):
    """Told the best cost so far, says whether to stop; the planner itself has no clock."""

    def __call__(self, best_cost: float) -> bool:
        """True to stop now."""


def never(best_cost: float) -> bool:
    """The stop rule that never stops: search until nothing is left to try."""
    return False


def make_plan(problem: Problem, stop: StopRule, seed: int = 0) -> Plan:
    """The best plan found for the problem; equal arguments give equal plans.

    Devices that serve in no pipeline are spares. Raises DoesNotFit, with the missing bytes, if no
    pipeline can hold the model and one sequence.
    """
    require_room(problem)
    pipelines: list[Pipeline] = []
    free = list(range(len(problem.devices)))
    while (pipeline := _next_pipeline(problem, free)) is not None:
        pipelines.append(pipeline)
        used = {shard.device for stage in pipeline.stages for shard in stage.shards}
        free = [number for number in free if problem.devices[number].id not in used]
    if not pipelines:
        require_room(problem, proven_impossible=True)
    return Plan(tuple(pipelines))


def _next_pipeline(problem: Problem, free: list[int]) -> Pipeline | None:
    if is_small(classes_of(problem, free)):
        return least_latency_pipeline(problem, free)
    return filled_pipeline(problem, free)
