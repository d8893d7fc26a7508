"""The simulation of large swarms (`benchmarks/thousand.py`), with a few peers for some minutes."""

import pytest

from benchmarks.first_fit import first_fit
from benchmarks.thousand import LAYERS, SPEC, simulated
from swarm.hardware import Device
from swarm.records import Capability


def test_a_small_swarm_keeps_every_invariant_and_serves_through_a_fault_a_minute() -> None:
    swarm, loop = simulated(10, 0.05, seed=3, search=first_fit)
    assert swarm.setting.findings.broken == []
    assert sum(swarm.watch.faults.values()) == 3
    assert swarm.watch.covered >= 0.99 * swarm.watch.seconds > 0
    assert loop.now > 300


@pytest.mark.slow
def test_fifty_peers_keep_every_invariant_for_half_an_hour() -> None:
    swarm, _ = simulated(50, 0.5, seed=1, search=first_fit)
    assert swarm.setting.findings.broken == []
    assert swarm.watch.covered >= 0.999 * (swarm.watch.seconds - swarm.watch.short_seconds)


def capability(layers: int) -> Capability:
    memory = 4 * SPEC.embedding_parameters + 4 * SPEC.layer_parameters * (layers + 1)
    return Capability("d", [Device(0, "cpu", "cpu", memory, 1.0, 1.0)], [], "h", True, 0.0)


def test_first_fit_chains_devices_and_mends_what_lost_one() -> None:
    there = {"a": capability(LAYERS // 2), "b": capability(LAYERS // 2), "c": capability(LAYERS)}
    plan, reason = first_fit(SPEC, there, None, may_move=True)
    assert [len(pipeline.stages) for pipeline in plan.pipelines] == [1, 2]
    assert not reason
    del there["a"]
    there["d"] = capability(LAYERS // 2)
    mended, _ = first_fit(SPEC, there, plan, may_move=False)
    assert {shard.peer for _, shard in mended.shards()} == {"b", "c", "d"}
    assert mended.pipelines[0] == plan.pipelines[0]
    empty, reason = first_fit(SPEC, {}, None, may_move=True)
    assert not empty.pipelines
    assert reason
