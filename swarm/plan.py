"""The plan: which device holds which layers and which share of them, and its JSON."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.hardware import WIDEST, WIDTHS

COLUMNS_PER_BLOCK = 128  # FFN columns in one unit of `mlp`
MOST = 2**31  # layers, heads, blocks: a figure above is no plan's, and breaks who computes with it


@dataclass(frozen=True, slots=True)
class Shard:
    """What one device of a stage holds: `kv` KV heads and `mlp` blocks of 128 FFN columns."""

    device: str  # "<machine or peer id>/<index>"
    kv: int
    mlp: int

    def __post_init__(self) -> None:
        if min(self.kv, self.mlp) < 0 or self.kv + self.mlp == 0:
            raise ValueError(f"shard of {self.device} must hold at least one KV head or MLP block")

    @property
    def peer(self) -> str:
        """The machine or peer that owns the device."""
        return self.device.rpartition("/")[0]

    @property
    def index(self) -> int:
        """The number of the device within its machine."""
        return int(self.device.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers `[start, end)` served together by the devices of `shards`; the first one leads.

    A segment has several `holders`, each of which serves all of its layers alone; any of them may
    follow any holder of the stage before. Its `shards` are those of all holders.
    """

    start: int
    end: int
    shards: tuple[Shard, ...]
    holders: tuple[tuple[Shard, ...], ...] = ()
    shares_ends: bool = False  # its devices divide the rows of embedding and head evenly
    dtype: str = WIDEST  # of weights, KV and hidden rows on every one of its devices

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end or not self.shards:
            raise ValueError(f"stage [{self.start},{self.end}) needs a layer and a shard")
        if self.holders and sum(self.holders, ()) != self.shards:
            raise ValueError(f"segment [{self.start},{self.end}): shards are those of its holders")
        if self.dtype not in WIDTHS:
            raise ValueError(f"stage [{self.start},{self.end}): dtype {self.dtype!r:.20}")

    @property
    def layers(self) -> int:
        """How many layers the stage holds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages that cover `[0, layers)` once, in order."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        at = 0
        for stage in self.stages:
            if stage.start != at:
                raise ValueError(f"stage [{stage.start},{stage.end}) should start at {at}")
            at = stage.end

    @property
    def layers(self) -> int:
        """How many layers the pipeline covers."""
        return self.stages[-1].end if self.stages else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Pipelines over disjoint devices for one model; devices in none of them are spares."""

    pipelines: tuple[Pipeline, ...]

    def __post_init__(self) -> None:
        devices = [shard.device for _, shard in self.shards()]
        if len(devices) != len(set(devices)):
            raise ValueError("a plan uses each device at most once")

    def shards(self) -> Iterator[tuple[Stage, Shard]]:
        """Every shard with its stage, in order of pipelines and stages."""
        for pipeline in self.pipelines:
            for stage in pipeline.stages:
                for shard in stage.shards:
                    yield stage, shard

    def stage_of(self, device: str) -> Stage | None:
        """The stage that `device` serves, or None for a spare."""
        return next((stage for stage, shard in self.shards() if shard.device == device), None)

    def to_json(self) -> dict[str, Any]:
        """The plan in the interchange form: pipelines, stages, shards."""
        return {"pipelines": [_pipeline_json(pipeline) for pipeline in self.pipelines]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Read the interchange form; raises ValueError on anything else."""
        try:
            return cls(tuple(_pipeline_of(pipeline) for pipeline in data["pipelines"]))
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a plan: {error!r}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _pipeline_json(pipeline: Pipeline) -> dict[str, Any]:
    return {"stages": [_stage_json(stage) for stage in pipeline.stages]}


def _stage_json(stage: Stage) -> dict[str, Any]:
    layers: dict[str, Any] = {"start": stage.start, "end": stage.end}
    if stage.shares_ends:
        layers["ends"] = "shared"
    if stage.dtype != WIDEST:
        layers["dtype"] = stage.dtype
    if stage.holders:
        return layers | {"holders": [_shards_json(holder) for holder in stage.holders]}
    return layers | {"shards": _shards_json(stage.shards)}


def _shards_json(shards: tuple[Shard, ...]) -> list[dict[str, Any]]:
    return [{"device": s.device, "kv": s.kv, "mlp": s.mlp} for s in shards]


def _pipeline_of(data: Mapping[str, Any]) -> Pipeline:
    return Pipeline(tuple(_stage_of(stage) for stage in data["stages"]))


def _stage_of(data: Mapping[str, Any]) -> Stage:
    start, end = _count(data["start"]), _count(data["end"])
    if "holders" not in data:
        shared = data.get("ends") == "shared"
        dtype = str(data.get("dtype", WIDEST))
        return Stage(start, end, _shards_of(data["shards"]), shares_ends=shared, dtype=dtype)
    holders = tuple(_shards_of(holder) for holder in data["holders"])
    return Stage(start, end, sum(holders, ()), holders)


def _shards_of(data: list[Mapping[str, Any]]) -> tuple[Shard, ...]:
    return tuple(Shard(_name(s["device"]), _count(s["kv"]), _count(s["mlp"])) for s in data)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"{value!r:.40} is not a whole number below {MOST}")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} does not name a device")
    return value


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device's part in a plan: its stage, and its rank in the stage's tensor-parallel group."""

    stage: Stage
    rank: int

    @property
    def leads(self) -> bool:
        """Whether the device receives the stage's frames."""
        return self.rank == 0
