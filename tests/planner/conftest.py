"""What the planner's tests share: the oracle, the cluster file, and small random worlds."""

import importlib.util
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from planner.problem import PlanDevice, PlanModel, Problem, Workload
from swarm.hardware import WIDTHS
from swarm.plan import Pipeline, Plan, Shard, Stage

FOLDER = Path(__file__).parents[2] / "benchmarks" / "planner"

World = Callable[..., Problem]
RandomPlan = Callable[[Problem, random.Random], Plan]


@pytest.fixture(scope="session")
def cluster_file() -> Path:
    return FOLDER / "instances.json"


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planner_oracle", FOLDER / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def small_model(layers: int) -> PlanModel:
    return PlanModel(
        name="small",
        layers=layers,
        hidden=1024,
        kv_heads=2,
        mlp_blocks=4,
        attention_parameters=4e6,
        mlp_parameters=12e6,
        embedding_parameters=1e6,
        bytes_per_weight=2.0,
        kv_bytes=4096.0,
    )


def random_world(
    seed: int, devices: int = 3, layers: int = 4, objective: str = "latency"
) -> Problem:
    """A world of unlike devices, some of them on one machine, with memory that often binds."""
    draw = random.Random(seed)
    model = small_model(layers)
    hosts = [f"m{draw.randrange(devices)}" for _ in range(devices)]
    made = tuple(
        PlanDevice(
            id=f"{host}/{hosts[:i].count(host)}",
            machine=host,
            flops=draw.choice([1e12, 3e12, 1e13]),
            bytes_per_second=draw.choice([5e10, 1e11, 3e11]),
            memory_bytes=draw.choice([2e7, 4.5e7, 8e7, 1.6e8, 4e8]),
        )
        for i, host in enumerate(hosts)
    )
    machines = len(set(hosts))
    latency = np.array(
        [[draw.choice([1e-5, 1e-4, 5e-3]) for _ in range(machines)] for _ in range(machines)]
    )
    latency = np.maximum(latency, latency.T)
    bandwidth = np.full((machines, machines), draw.choice([1e8, 1e9, 1e10]))
    np.fill_diagonal(latency, 1e-5)
    return Problem(model, made, latency, bandwidth, Workload(24, 40), objective)


def with_unlike_dtypes(problem: Problem, seed: int) -> Problem:
    """The world with a dtype drawn for every device, so that rows are of several sizes."""
    draw = random.Random(seed)
    devices = (replace(each, dtype=draw.choice(sorted(WIDTHS))) for each in problem.devices)
    return replace(problem, devices=tuple(devices))


def random_plan(problem: Problem, draw: random.Random) -> Plan:
    """Any plan with the right sums: it need not fit the memory."""
    model = problem.model
    ids = [device.id for device in problem.devices]
    draw.shuffle(ids)
    pipelines: list[Pipeline] = []
    while ids and len(pipelines) < 3:
        stages: list[Stage] = []
        at = 0
        while at < model.layers and ids:
            end = draw.randint(at + 1, model.layers) if len(ids) > 1 else model.layers
            count = draw.randint(1, min(3, len(ids), model.kv_heads))
            chosen, ids = ids[:count], ids[count:]
            end = end if ids else model.layers
            shards = tuple(
                Shard(device, kv, mlp)
                for device, kv, mlp in zip(
                    chosen,
                    deal(model.kv_heads, count, draw),
                    deal(model.mlp_blocks, count, draw),
                    strict=True,
                )
            )
            stages.append(Stage(at, end, shards))
            at = end
        pipelines.append(Pipeline(tuple(stages)))
    return Plan(tuple(pipelines))


def deal(units: int, hands: int, draw: random.Random) -> list[int]:
    """Every hand gets one unit at least."""
    cuts = sorted(draw.sample(range(1, units), hands - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, units], strict=True)]


@pytest.fixture(scope="session")
def world() -> World:
    return random_world


@pytest.fixture(scope="session")
def any_plan() -> RandomPlan:
    return random_plan
