"""require_room: whether the devices can hold the model at all, and how many bytes are missing."""

from planner.problem import Problem
from swarm.errors import DoesNotFit


def needed_bytes(problem: Problem) -> float:
    """Bytes of all layers, embedding, head and the KV cache of one whole sequence."""
    model = problem.model
    layer = model.layer_bytes + model.kv_bytes * problem.workload.context
    return model.layers * layer + 2 * model.end_bytes


def require_room(problem: Problem, *, proven_impossible: bool = False) -> None:
    """Raise DoesNotFit, with the missing bytes, if all memory together is too small.

    With `proven_impossible` raise in any case: memory suffices in sum but no division of layers
    over the devices fits.
    """
    need, have = needed_bytes(problem), sum(d.memory_bytes for d in problem.devices)
    name = problem.model.name
    if need > have:
        cause = f"{name} needs {need:.0f} bytes, the devices offer {have:.0f}"
        raise DoesNotFit(f"{cause}: {need - have:.0f} bytes are missing.", _NEXT)
    if proven_impossible:
        missing = smallest_unit_bytes(problem)
        cause = f"{name} fits the sum of memory but no division of its layers fits the devices"
        raise DoesNotFit(f"{cause}: about {missing:.0f} bytes are missing.", _NEXT)


_NEXT = "Add devices, offer more of their memory, or take a smaller or quantised model."


def smallest_unit_bytes(problem: Problem) -> float:
    """Bytes of the least thing that can be moved: one layer with its KV cache."""
    model = problem.model
    return model.layer_bytes + model.kv_bytes * problem.workload.context
