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
    _require_layer(problem)
    if proven_impossible:
        missing = smallest_unit_bytes(problem)
        cause = f"{name} fits the sum of memory but no division of its layers fits the devices"
        raise DoesNotFit(f"{cause}: about {bytes_text(missing)} are missing.", _NEXT)


def _require_layer(problem: Problem) -> None:
    """Raise DoesNotFit if no group can hold one layer: each of its devices holds a KV head."""
    model, unit = problem.model, smallest_unit_bytes(problem)
    if not model.least_units:  # then a device may hold columns alone
        return
    sizes = sorted((device.memory_bytes for device in problem.devices), reverse=True)
    largest = sum(sizes[: model.kv_heads])
    if largest >= unit:
        return
    if model.kv_heads == 1:
        raise DoesNotFit(
            f"One layer of {model.name} takes {bytes_text(unit)}, the largest device offers"
            f" {bytes_text(largest)}, and a model with one KV head cannot share a layer out.",
            "More devices do not help: let one offer"
            f" {bytes_text(unit + model.end_bytes)}, or take a smaller model.",
        )
    raise DoesNotFit(
        f"One layer of {model.name} takes {bytes_text(unit)}, and at most {model.kv_heads} devices"
        f" can share it, one for each KV head: the largest offer {bytes_text(largest)} together.",
        "Let these offer more of their memory, or take a smaller model.",
    )


_NEXT = (
    "Add devices, offer more of their memory, take a smaller model,"
    " or let nodes on CPUs hold its weights as 8-bit integers (--quant int8)."
)


def smallest_unit_bytes(problem: Problem) -> float:
    """Bytes of the least thing that can be moved: one layer with its KV cache."""
    model = problem.model
    return model.layer_bytes + model.kv_bytes * problem.workload.context
