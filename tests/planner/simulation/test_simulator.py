"""The simulator: what can be said in closed form comes out so."""

from pathlib import Path

import pytest

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem
from planner.simulation.simulator import Event, Request, Simulation, cycle_seconds, poisson_trace
from planner.stop import never
from swarm.plan import Plan


@pytest.fixture(scope="module")
def problem(cluster_file: Path) -> Problem:
    return read_instance(read_file(cluster_file), "hexgen-case-study").problem


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return best_plan(problem, never)


def same(count: int, apart: float) -> list[Request]:
    return [Request(i * apart, 128, 32) for i in range(count)]


def test_a_lone_request_takes_its_latency(problem: Problem, plan: Plan) -> None:
    cost = CostModel(problem)
    alone = Simulation(cost, plan, batching=False).run(same(1, 1.0))
    assert alone.percentile(0.5) == pytest.approx(cost.latency(plan.pipelines[0]))
    batched = Simulation(cost, plan, batching=True).run(same(1, 1.0))
    assert batched.percentile(0.5) == pytest.approx(cost.latency(plan.pipelines[0]), rel=0.1)


def test_without_batching_requests_queue_one_behind_the_other(problem: Problem, plan: Plan) -> None:
    cost = CostModel(problem)
    each = cost.latency(plan.pipelines[0])
    report = Simulation(cost, plan, batching=False).run(same(5, 0.0))
    assert [s.seconds for s in report.served] == pytest.approx([each * i for i in range(1, 6)])
    assert report.attainment([3.5 * each] * 5) == pytest.approx(0.6)


def test_continuous_batching_serves_a_crowd_much_sooner(problem: Problem, plan: Plan) -> None:
    cost = CostModel(problem)
    one = Simulation(cost, plan, batching=False).run(same(40, 0.1))
    many = Simulation(cost, plan, batching=True).run(same(40, 0.1))
    assert many.percentile(0.99) < one.percentile(0.99) / 4
    assert cycle_seconds(cost, plan.pipelines[0], 8) < 8 * cycle_seconds(cost, plan.pipelines[0], 1)


def test_requests_start_again_when_a_peer_leaves_and_wait_for_it_to_join(
    problem: Problem, plan: Plan
) -> None:
    cost, gone = CostModel(problem), (plan.pipelines[0].stages[0].shards[0].device,)
    events = [Event(0.5, leave=gone), Event(9.0, join=gone)]
    for batching in (False, True):
        report = Simulation(cost, plan, batching=batching).run(same(1, 1.0), events)
        assert report.percentile(0.5) >= 9.0
        assert report.percentile(0.5) < 9.0 + 2 * cost.latency(plan.pipelines[0])
        lost = Simulation(cost, plan, batching=batching).run(same(1, 1.0), events[:1])
        assert lost.percentile(0.5) == float("inf")


def test_traces_are_poisson_and_repeatable() -> None:
    trace = poisson_trace(4.0, 2000, [32, 64], [16], seed=3)
    assert trace == poisson_trace(4.0, 2000, [32, 64], [16], seed=3)
    assert trace[-1].arrival_seconds == pytest.approx(500, rel=0.1)
    assert {request.input_tokens for request in trace} == {32, 64}
