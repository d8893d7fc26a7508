"""moved_bytes: what every device must load to get from one plan to another."""

from planner.problem import Problem
from swarm.plan import Plan, Stage

Interval = tuple[float, float]


def moved_bytes(problem: Problem, old: Plan, new: Plan) -> dict[str, float]:
    """Weight bytes that each device of the new plan lacks; devices that lack none are left out."""
    before = {shard.device: stage for stage, shard in old.shards()}
    lacks = {
        shard.device: _lacking(problem, before.get(shard.device), stage, shard.device)
        for stage, shard in new.shards()
    }
    return {device: size for device, size in lacks.items() if size > 0}


def load_seconds(problem: Problem, moved: dict[str, float]) -> float:
    """Seconds until the last device has loaded what it lacks."""
    devices = problem.devices
    rates = {device.id: device.load_bytes_per_second for device in devices}
    return max((size / rates[device] for device, size in moved.items()), default=0.0)


def _lacking(problem: Problem, old: Stage | None, new: Stage, device: str) -> float:
    model = problem.model
    heads, columns = _held(new, device)
    known = 0
    common_heads = common_columns = 0.0
    if old is not None:
        known = max(0, min(old.end, new.end) - max(old.start, new.start))
        old_heads, old_columns = _held(old, device)
        common_heads, common_columns = _common(heads, old_heads), _common(columns, old_columns)
    head = model.attention_parameters * model.bytes_per_weight / model.kv_heads
    block = model.mlp_parameters * model.bytes_per_weight / model.mlp_blocks
    whole = (heads[1] - heads[0]) * head + (columns[1] - columns[0]) * block
    return new.layers * whole - known * (common_heads * head + common_columns * block)


def _held(stage: Stage, device: str) -> tuple[Interval, Interval]:
    """The KV heads and the MLP blocks that a device holds, as intervals."""
    heads = columns = 0
    for shard in stage.shards:
        if shard.device == device:
            return (heads, heads + shard.kv), (columns, columns + shard.mlp)
        heads, columns = heads + shard.kv, columns + shard.mlp
    raise ValueError(f"{device} is not in stage [{stage.start},{stage.end})")


def _common(a: Interval, b: Interval) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
