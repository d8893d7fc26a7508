"""The live door: from what peers advertise to a plan that a swarm can load."""

from dataclasses import replace

import pytest

from planner.best_plan import best_plan
from planner.cli.text_chart import layers_picture
from planner.cost.cost_model import CostModel
from planner.live_problem import live_problem
from planner.problem import Problem
from planner.stop import never
from swarm.errors import DoesNotFit
from swarm.hardware import SAME_HOST, UNKNOWN, Device, Link
from swarm.model_spec import ModelSpec
from swarm.records import Capability

MIB = 2**20
SPEC = ModelSpec(
    name="tiny",
    digest="d",
    architecture="llama",
    layers=8,
    hidden=128,
    heads=8,
    kv_heads=8,
    head_dim=16,
    ffn=1024,
    vocab=512,
    context=512,
    attention_parameters=4 * 128 * 128,
    mlp_parameters=3 * 128 * 1024,
    tied=True,
)
LAYER_BYTES = SPEC.layer_parameters * 4


def capability(
    memory: float, speed: float = 1e9, *, host: str = "h", links: list[Link] | None = None
) -> Capability:
    device = Device(0, "cpu", "cpu", int(memory), speed, speed * 4)
    return Capability("d", [device], links or [], host, True, 0.0)


def problem_of(capabilities: dict[str, Capability]) -> Problem:
    return live_problem(SPEC, capabilities, bytes_per_weight=4, bytes_per_value=4, context=256)


def test_a_device_too_small_for_one_layer_joins_an_uneven_group() -> None:
    room = LAYER_BYTES * 6
    problem = problem_of({"a": capability(room), "b": capability(room), "c": capability(1.4 * MIB)})
    plan = best_plan(problem, never)
    assert CostModel(problem).reasons(plan) == []
    small = 1.4 * MIB
    assert small < LAYER_BYTES
    only_small = problem_of({"a": capability(LAYER_BYTES * 8.2), "c": capability(8 * MIB)})
    tight = best_plan(only_small, never)
    assert tight.stage_of("c/0") is not None


def test_four_unlike_nodes_get_unlike_stages_and_shares() -> None:
    whole = LAYER_BYTES * 8
    problem = problem_of(
        {
            "a": capability(whole * 0.6, 2e9),
            "b": capability(whole * 0.45, 1e9),
            "c": capability(whole * 0.3, 2e9),
            "d": capability(LAYER_BYTES * 0.8, 2e9),
        }
    )
    plan = best_plan(problem, never)
    assert CostModel(problem).reasons(plan) == []
    assert len(plan.pipelines) == 1
    assert {s.device for _, s in plan.shards()} >= {"a/0", "b/0", "c/0"}


def test_every_shard_of_a_live_plan_holds_heads_and_columns() -> None:
    problem = problem_of({p: capability(LAYER_BYTES * 1.5) for p in "abcdefgh"})
    plan = best_plan(problem, never)
    assert min(min(s.kv, s.mlp) for _, s in plan.shards()) >= 1


def test_leftover_devices_serve_a_second_pipeline() -> None:
    problem = problem_of({p: capability(LAYER_BYTES * 12) for p in "ab"})
    assert len(best_plan(problem, never).pipelines) in (1, 2)
    far = {p: capability(LAYER_BYTES * 12, host=p) for p in "ab"}
    assert len(best_plan(problem_of(far), never).pipelines) == 2


def test_too_little_memory_is_refused_with_the_missing_bytes() -> None:
    with pytest.raises(DoesNotFit, match=r"\d [kMG]?B are missing"):
        best_plan(problem_of({"a": capability(LAYER_BYTES)}), never)
    with pytest.raises(DoesNotFit, match="missing"):
        best_plan(problem_of({}), never)


def test_missing_links_are_guessed_and_measured_ones_used_both_ways() -> None:
    measured = [Link("b", 0.004, 5e7)]
    problem = problem_of(
        {
            "a": capability(1e8, links=measured),
            "b": capability(1e8),
            "c": capability(1e8, host="elsewhere"),
        }
    )
    assert problem.link(0, 1) == problem.link(1, 0) == (0.002, 5e7)
    assert problem.link(0, 2) == (UNKNOWN.seconds, UNKNOWN.bytes_per_second)
    near = problem_of({"a": capability(1e8), "b": capability(1e8)}).link(0, 1)
    assert near == (SAME_HOST.seconds, SAME_HOST.bytes_per_second)


def test_equal_snapshots_make_equal_plans_and_leaving_peers_are_left_out() -> None:
    peers = {p: capability(LAYER_BYTES * 4, 1e9 + ord(p)) for p in "abcd"}
    one = best_plan(problem_of(peers), never)
    two = best_plan(problem_of(dict(reversed(peers.items()))), never)
    assert one.digest == two.digest


def test_the_picture_shows_every_shard_and_every_spare() -> None:
    problem = problem_of({"a": capability(LAYER_BYTES * 5), "b": capability(LAYER_BYTES * 5)})
    plan = best_plan(problem, never)
    text = layers_picture(plan, {"a/0": "anna", "b/0": "bert", "c/0": "carl"})
    assert "anna" in text
    assert "bert" in text
    assert text.splitlines()[-1].endswith("spare")


def test_an_int8_peer_takes_more_layers_within_its_memory_and_reads_them_faster() -> None:
    ends = 2 * SPEC.embedding_parameters * 4 + 8 * 256 * SPEC.kv_bytes(8, 4)
    room = LAYER_BYTES * 3 + ends  # three layers in float32, any of them and both ends
    small = quantised(capability(room), weight_bytes=1.25)
    problem = problem_of({"a": small, "b": capability(room)})
    of_int8, of_f32 = problem.devices
    assert of_f32.memory_bytes == room
    assert of_int8.memory_bytes == pytest.approx(LAYER_BYTES * 3 * 3.2 + ends)
    assert of_int8.bytes_per_second == pytest.approx(3.2 * of_f32.bytes_per_second)
    plan = best_plan(problem_of({"a": small}), never)
    assert sum(stage.end - stage.start for stage in plan.pipelines[0].stages) == 8
    with pytest.raises(DoesNotFit):
        best_plan(problem_of({"b": capability(room)}), never)


def test_a_small_int8_peer_never_counts_as_less_than_its_memory() -> None:
    tiny = quantised(capability(1.4 * MIB), weight_bytes=1.25)
    assert problem_of({"a": tiny}).devices[0].memory_bytes == int(1.4 * MIB)


def quantised(given: Capability, weight_bytes: float) -> Capability:
    devices = [replace(device, weight_bytes=weight_bytes) for device in given.devices]
    return replace(given, devices=devices)
