"""Stages in bf16 and f16 on a CPU: tokens and logits of a model in that dtype, and mixed chains."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.engine.shard_io import StepItem
from node.engine.stage_runner import StageRunner
from node.worker.answers import measured
from node.worker.messages import Compute, Computed, Measure
from node.worker.shard import LoadedShard
from swarm.checkpoint.folder import read_spec
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import DTYPES, rows_of_bytes, rows_to_bytes
from tests.node.worker.shards import (
    BUDGET,
    FOLDER,
    HIDDEN,
    computed,
    generate,
    lone_shard,
    passed_on,
    reserve,
    rows_of,
    shard_group,
    spec_of,
)

PROMPT = [10, 200, 33, 47, 5, 81]
GREEDY = Sampling(max_tokens=24)
TOLERANCE = {"bf16": 0.02, "f16": 0.003}  # of the largest logit: 5 and 6 units in the last place


@cache
def whole(dtype: str) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(FOLDER, dtype=DTYPES[dtype]).eval()


def expected(dtype: str) -> list[int]:
    """What transformers' own generate answers in a dtype."""
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        made = whole(dtype).generate(ids, max_new_tokens=GREEDY.max_tokens, do_sample=False)
    return [int(token) for token in made[0, len(PROMPT) :]]


def logits_of(dtype: str) -> torch.Tensor:
    """Of the prompt's last row in one stage of that dtype, as its sampler gets them: [vocab]."""
    runner = StageRunner.load(spec_of(0, 8, dtype=dtype), budget_bytes=BUDGET)
    seen: list[torch.Tensor] = []
    runner.open("s", capacity=64, history=PROMPT)

    def look(_ids: object, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores[0].clone())
        return scores

    runner._samplers["s"]._processors.append(look)
    runner.step([StepItem("s", 0, torch.tensor(PROMPT), sample=True)])
    (found,) = seen
    return found


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_narrow_stage_gives_the_tokens_of_transformers_in_that_dtype(dtype: str) -> None:
    assert generate([lone_shard(0, 8, dtype=dtype)], PROMPT, GREEDY) == expected(dtype)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_its_logits_are_float32_and_near_those_of_transformers_in_that_dtype(dtype: str) -> None:
    mine = logits_of(dtype)
    assert mine.dtype == torch.float32
    with torch.inference_mode():
        theirs = whole(dtype)(torch.tensor([PROMPT])).logits[0, -1].float()
        exact = whole("f32")(torch.tensor([PROMPT])).logits[0, -1]
    peak = float(exact.abs().max())
    assert float((mine - theirs).abs().max()) < TOLERANCE[dtype] * peak
    assert float((mine - exact).abs().max()) < TOLERANCE[dtype] * peak
    assert not torch.equal(mine, exact)  # it was not computed in float32 after all


@pytest.mark.parametrize(
    "dtypes",
    [("bf16", "bf16"), ("bf16", "f32"), ("f32", "bf16"), ("f16", "f32"), ("f32", "f16")],
)
def test_stages_of_any_dtypes_follow_each_other(dtypes: tuple[str, str]) -> None:
    chain = [lone_shard(0, 3, dtype=dtypes[0]), lone_shard(3, 8, dtype=dtypes[1])]
    assert generate(chain, PROMPT, GREEDY) == expected(max(dtypes))  # sure enough of these


def rows_after(first: LoadedShard) -> Computed:
    first.apply([reserve("s", PROMPT)])
    return computed(first.apply([rows_of("s", 0, PROMPT)]))


def test_rows_leave_in_the_dtype_of_their_stage_and_arrive_as_the_next_one_computes() -> None:
    answer = rows_after(lone_shard(0, 3, dtype="bf16"))
    assert answer.dtype == "bf16"
    assert len(answer.body) == len(PROMPT) * HIDDEN * 2
    rows = rows_of_bytes("bf16", answer.body, len(PROMPT))
    results = []
    for given in (rows, rows.float()):  # every bf16 value is a float32 value
        dtype, body = rows_to_bytes(given)
        wide = lone_shard(3, 6)
        wide.apply([reserve("s", PROMPT)])
        order = Compute("s", 0, len(PROMPT), True, dtype, body=body)
        results.append(computed(wide.apply([order])))
    assert [each.dtype for each in results] == ["f32", "f32"]
    assert bytes(results[0].body) == bytes(results[1].body)


def test_a_step_takes_rows_of_sessions_in_unlike_dtypes() -> None:
    sent = {name: rows_after(lone_shard(0, 3, dtype=name)) for name in ("bf16", "f32")}

    def answers(names: Sequence[str], dtype: str) -> dict[str, bytes]:
        last = lone_shard(3, 6, dtype=dtype)
        last.apply([reserve(name, PROMPT) for name in names])
        orders = []
        for name in names:
            order = passed_on(sent[name])
            order.session = name
            orders.append(order)
        made = last.apply(orders)
        assert all(isinstance(each, Computed) for each in made)
        return {each.session: bytes(each.body) for each in made if isinstance(each, Computed)}

    together = answers(["bf16", "f32"], "f32")
    assert together == answers(["bf16"], "f32") | answers(["f32"], "f32")
    narrow = answers(["bf16", "f32"], "bf16")
    assert {name: len(body) for name, body in narrow.items()} == dict.fromkeys(
        sent, len(PROMPT) * HIDDEN * 2
    )


@pytest.mark.parametrize("vocab_parts", [(), (3, 5)])
def test_ranks_of_a_bf16_stage_add_their_parts_up(vocab_parts: tuple[int, ...]) -> None:
    group = shard_group(0, 8, (3, 5), vocab_parts=vocab_parts, dtype="bf16")
    try:
        assert generate([group.leader], PROMPT, GREEDY) == expected("bf16")
        assert {runner.spec.dtype for runner in group.runners} == {"bf16"}
    finally:
        group.close()


def test_weights_and_kv_take_half_the_memory() -> None:
    wide, narrow = (
        StageRunner.load(spec_of(0, 8, dtype=dtype), budget_bytes=BUDGET)
        for dtype in ("f32", "bf16")
    )
    assert narrow.weight_bytes == pytest.approx(wide.weight_bytes / 2, rel=0.01)
    freed = wide.weight_bytes - narrow.weight_bytes
    left = BUDGET - wide.weight_bytes
    tokens = wide.free_tokens * 2 * (left + freed) / left
    assert narrow.free_tokens == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize(("dtype", "width"), [("f32", 4.0), ("bf16", 2.0), ("f16", 2.0)])
def test_a_device_is_measured_in_its_dtype(dtype: str, width: float) -> None:
    spec = read_spec(FOLDER, "swarm-tiny")
    answer = measured(Measure(spec.to_json(), dtype, "", str(FOLDER)), "cpu", 1.0)
    assert answer.weight_bytes == width
    assert answer.flops > 1e6
    assert answer.bytes_per_second > 1e6
