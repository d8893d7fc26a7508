"""Dtypes of devices: a narrow one holds twice as much, and unlike ones share no stage."""

from dataclasses import replace

import pytest

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.cost.criterion import latency_criterion
from planner.device_classes import classes_of
from planner.live_problem import as_float32, live_problem, with_dtypes, without_mixed_stages
from planner.problem import Problem
from planner.replanning.migration import with_least_loading
from planner.search.group_pool import GroupPool
from planner.search.tensor_split import StageMembers, best_split
from planner.stop import StopRule, never
from swarm.errors import DoesNotFit
from swarm.hardware import WIDTHS, Device, common_dtype
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability
from swarm.wire.tensor_codec import DTYPES
from tests.planner.test_live_problem import LAYER_BYTES, SPEC

CONTEXT = 256
KV_BYTES = CONTEXT * SPEC.kv_bytes(8, 4)  # of a layer, in float32
END_BYTES = SPEC.embedding_parameters * 4
STOPS: list[StopRule] = [never, lambda _cost: True]


def peer_of(dtype: str, memory: float, speed: float = 1e9, host: str = "h") -> Capability:
    """A peer with one device, as it would measure itself."""
    device = Device(0, "cuda", "gpu", int(memory), speed, speed * 4, WIDTHS[dtype], dtype)
    return Capability(SPEC.digest, [device], [], host, True, 0.0)


def problem_of(capabilities: dict[str, Capability]) -> Problem:
    return live_problem(SPEC, capabilities, bytes_per_weight=4, bytes_per_value=4, context=CONTEXT)


def layers_of(plan: Plan) -> dict[str, int]:
    return {shard.device: stage.layers for stage, shard in plan.shards()}


def test_the_dtypes_of_the_plan_are_those_that_tensors_know() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == WIDTHS


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (["bf16", "bf16"], "bf16"),
        (["f16"], "f16"),
        (["bf16", "f32"], "f32"),
        (["bf16", "f16"], "f32"),
        ([], "f32"),
    ],
)
def test_a_stage_computes_in_the_dtype_of_all_its_devices_or_in_f32(
    dtypes: list[str], common: str
) -> None:
    assert common_dtype(dtypes) == common


@pytest.mark.parametrize(
    ("dtype", "share", "sessions"),
    [
        ("f32", 1.001, 1),
        ("f32", 0.999, 0),
        ("bf16", 0.501, 1),
        ("bf16", 0.499, 0),
        ("f16", 0.501, 1),
    ],
)
def test_weights_ends_and_kv_of_a_narrow_device_are_half_as_large(
    dtype: str, share: float, sessions: int
) -> None:
    room = SPEC.layers * (LAYER_BYTES + KV_BYTES) + 2 * END_BYTES  # the model, and one session
    whole = Pipeline((Stage(0, SPEC.layers, (Shard("a/0", 8, 8),)),))
    assert CostModel(problem_of({"a": peer_of(dtype, room * share)})).room(whole) == sessions


def test_a_bf16_device_takes_more_layers_than_an_equal_f32_one() -> None:
    memory = 4.4 * (LAYER_BYTES + KV_BYTES) + END_BYTES
    wide = best_plan(problem_of({n: peer_of("f32", memory, host=n) for n in "ab"}), never)
    assert sorted(layers_of(wide).values()) == [4, 4]
    unlike = {"a": peer_of("bf16", memory, host="a"), "b": peer_of("f32", memory, host="b")}
    assert layers_of(best_plan(problem_of(unlike), never)) == {"a/0": 8}
    for name in unlike:
        unlike[name] = peer_of(unlike[name].devices[0].dtype, memory * 0.7, host=name)
    mixed = layers_of(best_plan(problem_of(unlike), never))
    assert mixed["a/0"] > mixed["b/0"]
    with pytest.raises(DoesNotFit):
        best_plan(problem_of({n: peer_of("f32", memory * 0.7, host=n) for n in "ab"}), never)


def test_a_decode_step_of_a_bf16_device_reads_half_the_bytes() -> None:
    memory = 2 * SPEC.layers * (LAYER_BYTES + KV_BYTES)
    devices = [problem_of({"a": peer_of(d, memory)}).devices[0] for d in ("f32", "bf16")]
    assert devices[1].bytes_per_second == 2 * devices[0].bytes_per_second
    assert devices[1].flops == devices[0].flops  # measured in its own dtype


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("stop", STOPS)
def test_devices_of_unlike_dtypes_share_no_stage(objective: str, stop: StopRule) -> None:
    memory = 2.5 * (LAYER_BYTES + KV_BYTES) + END_BYTES
    peers = {
        name: peer_of(dtype, memory / (1 + (dtype != "f32")), 1e9 / (1 + (dtype != "f32")))
        for name, dtype in zip("abcdef", ["f32", "bf16"] * 3, strict=True)
    }
    problem = replace(problem_of(peers), objective=objective)
    kinds = {(d.memory_bytes, d.bytes_per_second) for d in problem.devices}
    assert len(kinds) == 1  # nothing but the dtype tells them apart
    plan = best_plan(problem, stop)
    assert CostModel(problem).reasons(plan) == []
    for stage, _ in plan.shards():
        names = {peers[shard.peer].devices[0].dtype for shard in stage.shards}
        assert len(names) == 1


def test_devices_that_differ_in_dtype_alone_are_not_interchangeable() -> None:
    (wide,) = peer_of("f32", 1e8).devices
    (narrow,) = peer_of("bf16", 5e7, 5e8).devices
    narrow = replace(narrow, flops=wide.flops)
    both = [wide, replace(narrow, index=1), replace(wide, index=2), replace(narrow, index=3)]
    problem = problem_of({"a": Capability(SPEC.digest, both, [], "h", True, 0.0)})
    assert len({(d.memory_bytes, d.bytes_per_second, d.flops) for d in problem.devices}) == 1
    assert classes_of(problem, range(4)).members == ((0, 2), (1, 3))
    pool = GroupPool(problem, CostModel(problem))
    assert [pool.type_number(device) for device in range(4)] == [0, 1, 0, 1]
    old = Plan((Pipeline((Stage(0, 8, (Shard("a/0", 8, 8),)),)),))
    new = Plan((Pipeline((Stage(0, 8, (Shard("a/1", 8, 8),)),)),))
    assert with_least_loading(problem, old, new) == new  # though a/0 would have nothing to load


def test_a_group_of_unlike_dtypes_holds_nothing() -> None:
    room = 16 * (LAYER_BYTES + KV_BYTES)
    problem = problem_of({"a": peer_of("f32", room), "b": peer_of("bf16", room)})
    assert best_split(problem, StageMembers((0, 1)), latency_criterion(problem), 1) == ()
    mixed = Stage(0, 8, (Shard("a/0", 4, 4), Shard("b/0", 4, 4)))
    assert CostModel(problem).room(Pipeline((mixed,))) < 1


def test_widened_devices_are_those_of_float32_and_may_share_a_stage() -> None:
    room = 8 * (LAYER_BYTES + KV_BYTES)
    peers = {"a": peer_of("f32", room), "b": peer_of("bf16", room)}
    alike = as_float32(peers)
    assert alike["a"] == peers["a"]
    (device,) = alike["b"].devices
    assert (device.dtype, device.weight_bytes, device.memory_bytes) == ("f32", 4.0, int(room))
    assert device.flops == peers["b"].devices[0].flops / 2
    problem = problem_of(alike)
    assert best_split(problem, StageMembers((0, 1)), latency_criterion(problem), 1)


def test_a_plan_says_what_every_stage_computes_in() -> None:
    peers = {
        name: peer_of(dtype, 1e8)
        for name, dtype in zip("abc", ["bf16", "bf16", "f32"], strict=True)
    }
    halves = [Shard("a/0", 4, 4), Shard("b/0", 4, 4)]
    alike = Pipeline((Stage(0, 5, tuple(halves)), Stage(5, 8, (Shard("c/0", 8, 8),))))
    told = with_dtypes(Plan((alike,)), peers)
    assert [stage.dtype for stage in told.pipelines[0].stages] == ["bf16", "f32"]
    assert without_mixed_stages(told, peers) == told
    unlike = Plan((Pipeline((Stage(0, 8, (halves[0], Shard("c/0", 4, 4))),)),))
    assert with_dtypes(unlike, peers).pipelines[0].stages[0].dtype == "f32"
    assert without_mixed_stages(unlike, peers) == Plan(())
