"""Embedding and head that fit no device whole: the plan divides them, and tokens stay the same."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from node.control.next_plan import PlanDocument, next_plan, problem_of
from node.worker.compute_loop import _spec_of
from node.worker.messages import Load
from planner.cost.cost_model import CostModel
from planner.cost.stage_cost import end_bytes_of
from swarm.model_spec import BYTES_PER_VALUE
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.wire.sampling_params import Sampling
from tests.node.memberships import SPEC, capability_of
from tests.node.worker.shards import FOLDER, generate, lone_shard, shard_group

WORDY = replace(SPEC, vocab=1 << 16)
END_BYTES = WORDY.embedding_parameters * BYTES_PER_VALUE
FEW = {name: capability_of(0.9 * END_BYTES) for name in "abcd"}
PROMPT = [10, 200, 33, 47, 5, 81]


def test_ends_that_fit_no_device_are_divided_by_the_plan() -> None:
    plan, reason = next_plan(WORDY, FEW, None)
    assert reason == ""
    (pipeline,) = plan.pipelines
    assert pipeline.layers == WORDY.layers
    assert pipeline.stages[0].shares_ends
    assert pipeline.stages[-1].shares_ends
    assert not CostModel(problem_of(WORDY, FEW)).reasons(plan)


def test_ends_that_fit_whole_are_not_divided() -> None:
    plan, _ = next_plan(WORDY, {name: capability_of(3 * END_BYTES) for name in "abcd"}, None)
    assert plan.pipelines
    assert not any(stage.shares_ends for p in plan.pipelines for stage in p.stages)


def test_a_plan_with_divided_ends_stays_while_its_peers_do() -> None:
    plan, _ = next_plan(WORDY, FEW, None)
    assert next_plan(WORDY, FEW, plan, may_move=False) == (plan, "")


def test_what_does_not_fit_divided_either_says_what_is_missing() -> None:
    peers = {name: capability_of(0.3 * END_BYTES) for name in "abcd"}
    plan, reason = next_plan(WORDY, peers, None)
    assert plan == Plan(())
    assert "are missing" in reason


@pytest.mark.parametrize("ends", [(True, False), (False, True), (True, True)])
def test_the_parts_of_the_ends_add_up(ends: tuple[bool, bool]) -> None:
    problem = problem_of(WORDY, FEW)
    first, last = ends
    held = [
        end_bytes_of(problem, (rank, 3), first=first, last=last, shared=True) for rank in range(3)
    ]
    assert sum(held) == pytest.approx((first + last) * END_BYTES)
    assert len(set(held)) == 1


def test_the_form_of_a_plan_says_it_only_where_it_is_so() -> None:
    shards = (Shard("a/0", 3, 4), Shard("b/0", 5, 4))
    plan = Plan((Pipeline((Stage(0, 4, shards[:1]), Stage(4, 8, shards[1:], shares_ends=True))),))
    form = plan.to_json()["pipelines"][0]["stages"]
    assert [stage.get("ends") for stage in form] == [None, "shared"]
    document = PlanDocument(plan, 4, "a", SPEC.digest)
    assert PlanDocument.of_bytes(document.to_bytes()) == document
    assert json.loads(document.to_bytes())["plan"] == plan.to_json()


def test_a_worker_that_is_told_so_holds_even_parts() -> None:
    spec = {"folder": str(FOLDER), "start": 0, "end": 8, "rank": 1}
    bounds = {"kv_bounds": [0, 5, 7, 8], "mlp_bounds": [0, 5, 7, 8]}
    assert _spec_of(Load("g", spec | bounds | {"shares_ends": False}, 0)).vocab_bounds == ()
    held = _spec_of(Load("g", spec | bounds | {"shares_ends": True}, 0)).vocab_bounds
    parts = {high - low for low, high in pairwise(held)}
    assert len(held) == 4
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=0.9, top_k=40, seed=5)],
    ids=["greedy", "sampled"],
)
def test_a_group_with_divided_ends_generates_what_one_device_does(sampling: Sampling) -> None:
    expected = generate([lone_shard(0, 8)], PROMPT, sampling)
    group = shard_group(0, 8, (5, 3), vocab_parts=(3, 5))
    try:
        assert group.leader.self_test() > 0
        assert generate([group.leader], PROMPT, sampling) == expected
        whole = lone_shard(0, 8)._runner.weight_bytes
        assert sum(each.weight_bytes for each in group.runners) < 1.02 * whole
    finally:
        group.close()
