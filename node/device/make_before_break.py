"""Make before break: whether others still load what nobody but us serves; a pure function."""

from collections.abc import Iterable

from swarm.plan import Plan, Stage
from swarm.records import Advert


def is_awaited(stage: Stage, plan: Plan, others: Iterable[Advert]) -> bool:
    """Whether a stage is to serve until other devices of the plan serve its layers.

    Only while all layers are served: where some are not, nobody loses anything, and each new part
    is wanted at once. What the plan gives to the same devices again nobody else can take over.
    """
    elsewhere = {layer for each in others for s in each.stages for layer in range(s.start, s.end)}
    alone = set(range(stage.start, stage.end)) - elsewhere
    layers = max((pipeline.layers for pipeline in plan.pipelines), default=0)
    if set(range(layers)) - alone - elsewhere:
        return False
    ours = {shard.device for shard in stage.shards}
    coming = {
        layer
        for planned, shard in plan.shards()
        if shard.device not in ours
        for layer in range(planned.start, planned.end)
    }
    return bool(alone & coming)
