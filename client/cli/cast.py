"""Cast: four unlike nodes for the demo, whose memories leave the planner one kind of plan; pure."""

from dataclasses import dataclass

from swarm.errors import BadModel
from swarm.model_spec import BYTES_PER_VALUE, PLANNED_TOKENS, ModelSpec


@dataclass(frozen=True, slots=True)
class Role:
    """One node of the demo: what it is called, may use, and how much slower it is made."""

    name: str
    memory_bytes: int
    slowdown: float


def cast_of(spec: ModelSpec) -> tuple[Role, ...]:
    """A large node, a medium one, and two small ones that can only serve layers together.

    Large and medium hold whole layers, each with room for one end of the model (embedding or
    head). What is left fits the small ones only if they share every layer 5 to 3, and no device
    can spare a unit: every other arrangement is too large somewhere.
    """
    if spec.layers < 4 or min(spec.kv_heads, spec.mlp_blocks) < 8:
        raise BadModel(
            f"{spec.name} is too small to be shown on four nodes.",
            "It takes 4 layers, 8 KV heads and 8 MLP blocks.",
        )
    many = spec.layers // 2
    few = (spec.layers - many) // 2
    shared = spec.layers - many - few
    more = (_five_eighths(spec.kv_heads), _five_eighths(spec.mlp_blocks))
    less = (spec.kv_heads - more[0], spec.mlp_blocks - more[1])
    whole = (spec.kv_heads, spec.mlp_blocks)
    end = spec.embedding_parameters * BYTES_PER_VALUE
    return (
        Role("large", shard_bytes(spec, many, *whole) + end, 1.0),
        Role("medium", shard_bytes(spec, few, *whole) + end, 1.5),
        Role("small", shard_bytes(spec, shared, *more), 1.0),
        Role("tiny", shard_bytes(spec, shared, *less), 2.0),
    )


def shard_bytes(spec: ModelSpec, layers: int, kv: int, mlp: int) -> int:
    """Memory for a shard and the KV of one session, with a margin far below one unit more."""
    unit = _kv_unit(spec) * layers
    exact = kv * unit + mlp * _mlp_unit(spec) * layers
    margin = 0.05 * min(unit, _mlp_unit(spec) * layers)
    return round((exact + margin) * BYTES_PER_VALUE)


def _kv_unit(spec: ModelSpec) -> float:
    """Values of one KV head in one layer: its weights and its cache."""
    tokens = min(PLANNED_TOKENS, spec.context)
    return spec.attention_parameters / spec.kv_heads + tokens * spec.kv_bytes(1, 1)


def _mlp_unit(spec: ModelSpec) -> float:
    return spec.mlp_parameters / spec.mlp_blocks


def _five_eighths(units: int) -> int:
    return max(units * 5 // 8, units // 2 + 1)
