"""layers_picture: which device holds which layers, drawn in plain text."""

from collections.abc import Mapping

from swarm.plan import Plan, Shard, Stage

WIDTH = 48  # columns for all layers
SPARE = "·"
SHADES = "░▒▓█"  # by the shard's share of a layer


def layers_picture(plan: Plan, labels: Mapping[str, str], width: int = WIDTH) -> str:
    """One row for each shard: its label, its layers as a bar, its share; spares (labelled) last.

    `labels` maps device ids to what a reader calls them; a missing one is shown as its id.
    """
    rows: list[tuple[str, str, str]] = []
    for number, pipeline in enumerate(plan.pipelines):
        if len(plan.pipelines) > 1:
            rows.append((f"pipeline {number + 1}", "", ""))
        for stage in pipeline.stages:
            rows += _stage_rows(stage, pipeline.layers, labels, width)
    used = {shard.device for _, shard in plan.shards()}
    spares = [device for device in labels if device not in used]
    rows += [(labels[device], SPARE * width, "spare") for device in spares]
    broad = max((len(label) for label, _, _ in rows), default=0)
    return "\n".join(f"{a:<{broad}}  {bar:<{width}}  {note}".rstrip() for a, bar, note in rows)


def _stage_rows(
    stage: Stage, layers: int, labels: Mapping[str, str], width: int
) -> list[tuple[str, str, str]]:
    begin = stage.start * width // layers
    end = max(begin + 1, stage.end * width // layers)
    whole = (sum(s.kv for s in stage.shards), sum(s.mlp for s in stage.shards))
    rows = []
    for shard in stage.shards:
        bar = " " * begin + _shade(shard, whole) * (end - begin)
        rows.append((labels.get(shard.device, shard.device), bar, _note(stage, shard, whole)))
    return rows


def _shade(shard: Shard, whole: tuple[int, int]) -> str:
    share = (shard.kv + shard.mlp) / sum(whole)
    return SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))]


def _note(stage: Stage, shard: Shard, whole: tuple[int, int]) -> str:
    note = f"layers {stage.start}-{stage.end - 1}"
    if len(stage.shards) == 1:
        return note
    return f"{note}, {shard.kv}/{whole[0]} KV heads, {shard.mlp}/{whole[1]} MLP blocks"
