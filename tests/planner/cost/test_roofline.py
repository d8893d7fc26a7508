"""Rows cost what they weigh on the wire: predicted bytes are those that the codec sends."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.cost.roofline import (
    TOKEN_BYTES,
    allreduce_seconds,
    least_row_bytes,
    row_bytes,
    stage_row_bytes,
)
from planner.problem import PlanDevice, Problem, Workload
from planner.stop import never
from swarm.plan import Pipeline, Shard, Stage
from swarm.wire.codec import Codec
from swarm.wire.messages import Step
from swarm.wire.tensor_codec import DTYPES, rows_to_bytes
from swarm.wire.token_ids import ids_to_bytes
from tests.planner.conftest import small_model

MODEL = small_model(4)
LINK = (1e-3, 1e6)  # slow enough for bytes to count
HEADER_BYTES = 200  # of a frame, at most


def body_of(dtype: str, tokens: int) -> memoryview:
    """What a stage of that dtype really sends for so many tokens."""
    name, body = rows_to_bytes(torch.zeros(tokens, MODEL.hidden, dtype=DTYPES[dtype]))
    assert name == dtype
    return body


def two_devices(first: str, second: str, memory: float = 1e9) -> Problem:
    devices = tuple(
        PlanDevice(f"{name}/0", name, 1e12, 1e11, memory, dtype=dtype)
        for name, dtype in (("a", first), ("b", second))
    )
    latency = np.where(np.eye(2, dtype=bool), 0.0, LINK[0])
    return Problem(MODEL, devices, latency, np.full((2, 2), LINK[1]), Workload(24, 40))


def two_stages(first: str, second: str) -> Pipeline:
    shards = [Shard(device, MODEL.kv_heads, MODEL.mlp_blocks) for device in (first, second)]
    return Pipeline((Stage(0, 2, (shards[0],)), Stage(2, 4, (shards[1],))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 24])
def test_rows_weigh_what_a_stage_of_their_dtype_sends(dtype: str, tokens: int) -> None:
    body = body_of(dtype, tokens)
    assert tokens * row_bytes(MODEL, dtype) == body.nbytes
    step = Step("s", 0, b"k", 1, 0, tokens, sample=True, dtype=dtype, body=body)
    sent = sum(memoryview(part).nbytes for part in Codec().encode(step))
    assert body.nbytes < sent < body.nbytes + HEADER_BYTES


def test_a_device_of_no_dtype_sends_16_bit_values_as_cluster_files_mean() -> None:
    assert row_bytes(MODEL, "") == body_of("f16", 1).nbytes


@pytest.mark.parametrize(("first", "second"), [("f32", "bf16"), ("bf16", "f32"), ("f16", "f16")])
def test_a_hop_carries_rows_of_the_sending_stage_and_ids_back(first: str, second: str) -> None:
    cost = CostModel(two_devices(first, second))
    back = LINK[0] + len(ids_to_bytes([7])) / LINK[1]
    for tokens in (1, 24):
        onward = LINK[0] + body_of(first, tokens).nbytes / LINK[1]
        found = cost.hops(two_stages("a/0", "b/0"), np.array([float(tokens)]))
        assert found == pytest.approx([onward + back])
    assert len(ids_to_bytes([7])) == TOKEN_BYTES


def test_the_narrow_stage_goes_first_where_its_smaller_rows_save_more_than_anything() -> None:
    half = 2.6 * (MODEL.layer_bytes + MODEL.kv_bytes * 64) + MODEL.end_bytes
    for dtypes in (("f32", "bf16"), ("bf16", "f32")):
        problem = two_devices(*dtypes, memory=half)
        (pipeline,) = best_plan(problem, never).pipelines
        cost = CostModel(problem)
        assert [
            problem.devices[problem.index_of[s.shards[0].device]].dtype for s in pipeline.stages
        ] == [
            "bf16",
            "f32",
        ]
        other = two_stages(*(stage.shards[0].device for stage in reversed(pipeline.stages)))
        saved = 63 * 2 * MODEL.hidden / LINK[1]  # of 24 rows and 39 steps, two bytes a value
        assert cost.latency(other) - cost.latency(pipeline) == pytest.approx(saved, rel=0.01)


def test_a_bound_counts_the_smallest_row_that_any_stage_may_send() -> None:
    mixed = two_devices("f32", "bf16")
    assert least_row_bytes(mixed) == body_of("bf16", 1).nbytes
    assert least_row_bytes(two_devices("f32", "f32")) == body_of("f32", 1).nbytes
    assert stage_row_bytes(mixed, [0]) == 2 * stage_row_bytes(mixed, [1])


def test_members_sum_rows_of_their_own_dtype() -> None:
    stage = Stage(0, 4, (Shard("a/0", 1, 2), Shard("b/0", 1, 2)))
    seconds = {}
    for dtype in ("f32", "bf16"):
        cost = CostModel(two_devices(dtype, dtype))
        form = cost.form(stage)
        seconds[dtype] = form.allreduce_seconds(np.array([form.row_bytes]))[0]
        size = body_of(dtype, 1).nbytes
        assert seconds[dtype] == pytest.approx(2 * (LINK[0] + size / LINK[1]))
    assert seconds["f32"] > seconds["bf16"]


def test_an_allreduce_takes_the_better_way_and_one_member_needs_none() -> None:
    assert allreduce_seconds(1e6, 1, (0.0, np.inf)) == 0
    at_once, ring = 0.01 + 3 * 1e3 / 1e6, 6 * (0.01 + 1e7 / 4e6)
    assert allreduce_seconds(1e3, 4, (0.01, 1e6)) == pytest.approx(at_once)
    assert allreduce_seconds(1e7, 4, (0.01, 1e6)) == pytest.approx(ring)


def test_a_device_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="f8"):
        replace(two_devices("f32", "f32").devices[0], dtype="f8")
