"""require_room: whether the devices can hold the model at all, and how much memory is missing."""

from planner.problem import Problem
from swarm.errors import DoesNotFit
from swarm.formatting import bytes_text


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
        cause = f"{name} needs {bytes_text(need)}, the devices offer {bytes_text(have)}"
        raise DoesNotFit(f"{cause}: {bytes_text(need - have)} are missing.", _NEXT)
    if proven_impossible:
        missing = smallest_unit_bytes(problem)
        cause = f"{name} fits the sum of memory but no division of its layers fits the devices"
        raise DoesNotFit(f"{cause}: about {bytes_text(missing)} are missing.", _NEXT)


_NEXT = (
    "Add devices, offer more of their memory, take a smaller model,"
    " or let nodes on CPUs hold its weights as 8-bit integers (--quant int8)."
)


def smallest_unit_bytes(problem: Problem) -> float:
    """Bytes of the least thing that can be moved: one layer with its KV cache."""
    model = problem.model
    return model.layer_bytes + model.kv_bytes * problem.workload.context
