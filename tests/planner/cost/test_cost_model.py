"""The cost model: equal to the oracle on any plan of any instance."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import instance_ids, read_file, read_instance
from planner.problem import Problem
from swarm.plan import Plan

World = Callable[..., Problem]
RandomPlan = Callable[[Problem, random.Random], Plan]
IDS = [
    "hexgen-case-study",
    "hexgen-hetero-full-58",
    "helix-geo-24-30b",
    "parallax-7-qwen32b",
    "petals-real-14-bloom",
    "hexgen2-setting1-70b",
]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(IDS), st.integers(0, 10**6))
def test_agrees_with_the_oracle_on_random_plans(
    cluster_file: Path, oracle: ModuleType, any_plan: RandomPlan, name: str, seed: int
) -> None:
    problem = read_instance(read_file(cluster_file), name).problem
    judge = oracle.Evaluator(*oracle.load(cluster_file, name))
    plan = any_plan(problem, random.Random(seed))
    cost, raw = CostModel(problem), plan.to_json()
    load = problem.workload
    shape = (load.input_tokens, load.output_tokens)
    assert bool(cost.reasons(plan)) == bool(judge.problems(raw))
    for ours, theirs in zip(plan.pipelines, raw["pipelines"], strict=True):
        assert cost.latency(ours) == pytest.approx(judge.latency(theirs, *shape), rel=1e-6)
        assert cost.throughput(ours) == pytest.approx(judge.throughput(theirs, *shape), rel=1e-6)
        assert cost.room(ours) == judge.max_sequences(theirs, sum(shape))


def test_reads_every_instance_as_the_oracle_does(cluster_file: Path, oracle: ModuleType) -> None:
    file = read_file(cluster_file)
    for name in instance_ids(file):
        problem = read_instance(file, name).problem
        _, instance, devices = oracle.load(cluster_file, name)
        assert {d.id for d in problem.devices} == set(devices)
        load = problem.workload
        assert (load.input_tokens, load.output_tokens) == oracle.shape(instance)


def test_links_of_relays_and_access_lines_follow_the_oracle(
    cluster_file: Path, oracle: ModuleType, tmp_path: Path
) -> None:
    data = json.loads(cluster_file.read_text())
    entry = next(i for i in data["instances"] if i["id"] == "parallax-7-qwen32b")
    entry["machines"][0] |= {"nat": True, "up_Mbps": 20}
    entry["machines"][1] |= {"nat": True, "down_Mbps": 50}
    entry["machines"][2] |= {"host": "shed"}
    entry["machines"][3] |= {"host": "shed"}
    path = tmp_path / "mended.json"
    path.write_text(json.dumps(data))
    problem = read_instance(read_file(path), entry["id"]).problem
    _, instance, devices = oracle.load(path, entry["id"])
    everyone = list(devices.values())
    for a, here in enumerate(everyone):
        for b, there in enumerate(everyone):
            if a != b:
                assert problem.link(a, b) == pytest.approx(oracle.link(instance, here, there))


def test_names_what_is_wrong_with_a_plan(world: World, any_plan: RandomPlan) -> None:
    problem = world(3, devices=4)
    plan = any_plan(problem, random.Random(1))
    raw = plan.to_json()
    raw["pipelines"][0]["stages"][0]["shards"][0]["kv"] += 1
    assert any("KV heads" in r for r in CostModel(problem).reasons(type(plan).from_json(raw)))
    raw["pipelines"][0]["stages"][0]["shards"][0]["device"] = "nowhere/0"
    assert CostModel(problem).reasons(type(plan).from_json(raw)) == ["no device nowhere/0"]
