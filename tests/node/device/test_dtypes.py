"""Dtypes of a node: chosen from its device, written into the plan, agreed on by every member."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node import probe
from node.config import read_config
from node.control.next_plan import PlanDocument, next_plan
from node.device.group_request import GroupRequest
from node.device.local_device import DeviceContext, LocalDevice, ShardState
from node.probe import Detected, chosen_dtype, detect
from node.worker.compute_loop import _spec_of
from node.worker.gpu_report import report_gpus
from node.worker.messages import Load
from node.worker.worker_handle import WorkerProcess
from swarm.errors import BadInput, PeerRefused
from swarm.hardware import WIDTHS, Device, bytes_of
from swarm.model_spec import PLANNED_TOKENS, ModelSpec
from swarm.plan import Assignment, Pipeline, Plan, Shard, Stage
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import LAYER_BYTES, SPEC, WHOLE, capability_of
from tests.node.stands import ScriptedWorker
from tests.node.worker.shards import FOLDER

ME, LEADER = peer_named("me"), peer_named("leader")
CPU = Detected(0, "cpu", "cpu", "a CPU", 10**9, 10**9, 10**9, ("f32", "bf16", "f16"))
OLD_GPU = Detected(0, "cuda", "cuda:0", "Tesla T4", 10**9, 10**9, 10**9, ("f16", "f32"))
NEW_GPU = Detected(1, "cuda", "cuda:1", "H100", 10**9, 10**9, 10**9, ("bf16", "f16", "f32"))


def narrow(capability: Capability, dtype: str = "bf16") -> Capability:
    """The same peer with devices of another dtype."""
    form: dict[str, Any] = {"dtype": dtype, "weight_bytes": float(WIDTHS[dtype])}
    return replace(capability, devices=[replace(d, **form) for d in capability.devices])


# ---------------------------------------------------------------- what a device computes in


def test_gpus_get_bf16_where_they_multiply_it_and_f16_where_they_only_emulate_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capabilities = [(7, 5), (8, 0), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _index: (10**10, 2 * 10**10))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(probe, "read_gpus", report_gpus)
    monkeypatch.setattr(probe, "_may_have_gpus", lambda: True)
    found = detect(0)
    assert [chosen_dtype(each, "auto", "") for each in found] == ["f16", "bf16", "bf16", "bf16"]
    assert [chosen_dtype(each, "f32", "") for each in found] == ["f32"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere drivers show themselves otherwise")
def test_torch_is_not_asked_for_gpus_where_no_driver_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "GPU_DRIVERS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(probe, "read_gpus", lambda: pytest.fail("torch takes seconds"))
    assert [each.kind for each in detect(0)] == ["cpu"]


def test_a_cpu_computes_in_f32_unless_told_otherwise() -> None:
    assert chosen_dtype(CPU, read_config(["--host"]).dtype, "") == "f32"
    for wish in WIDTHS:
        assert chosen_dtype(CPU, read_config(["--host", "--dtype", wish]).dtype, "") == wish


def test_int8_computes_in_f32() -> None:
    config = read_config(["--host", "--quant", "int8"])
    assert chosen_dtype(CPU, config.dtype, config.quant) == "f32"


def test_what_a_device_cannot_do_is_refused_with_what_it_can() -> None:
    assert chosen_dtype(NEW_GPU, "bf16", "") == "bf16"
    with pytest.raises(BadInput, match=r"--dtype bf16 does not run on cuda:0, Tesla T4") as caught:
        chosen_dtype(OLD_GPU, "bf16", "")
    assert "f16 or f32" in caught.value.next_step


# ---------------------------------------------------------------- what the plan says


def test_a_bf16_peer_holds_alone_what_takes_two_peers_in_f32() -> None:
    memory = 6 * LAYER_BYTES  # the model is 8 layers, its ends and the KV of a session
    alone, reason = next_plan(SPEC, {"a": narrow(capability_of(memory))}, None)
    assert reason == ""
    (stage,) = alone.pipelines[0].stages
    assert (stage.layers, stage.dtype) == (SPEC.layers, "bf16")
    missing, reason = next_plan(SPEC, {"a": capability_of(memory)}, None)
    assert missing == Plan(())
    assert "missing" in reason


def test_missing_bytes_are_counted_as_the_devices_would_hold_them() -> None:
    def missing(peers: dict[str, Capability]) -> int:
        found = re.search(r"([\d.]+ [kMG]?B) are missing", next_plan(SPEC, peers, None)[1])
        assert found
        return bytes_of(found[1])

    small = {"a": capability_of(2 * LAYER_BYTES)}
    needed = missing(small) + small["a"].devices[0].memory_bytes
    halved = {"a": narrow(small["a"])}
    expected = needed / 2 - small["a"].devices[0].memory_bytes
    assert missing(halved) == pytest.approx(expected, rel=0.02)  # it is said in three digits


def test_stages_of_one_pipeline_have_each_their_own_dtype() -> None:
    peers = {
        "a": narrow(capability_of(3.5 * LAYER_BYTES, host="x")),
        "b": capability_of(5 * LAYER_BYTES, host="y"),
    }
    plan, _ = next_plan(SPEC, peers, None)
    assert len(plan.pipelines) == 1
    assert {s.shards[0].peer: s.dtype for s in plan.pipelines[0].stages} == {
        "a": "bf16",
        "b": "f32",
    }


FAT = replace(SPEC, kv_heads=2, heads=2, layers=1, mlp_parameters=40 * SPEC.mlp_parameters)
FAT_BYTES = FAT.layer_parameters * 4  # of its only layer, in f32


def test_unlike_devices_share_a_stage_in_f32_where_nothing_else_fits() -> None:
    peers = {"a": capability_of(0.7 * FAT_BYTES), "b": narrow(capability_of(0.49 * FAT_BYTES))}
    plan, reason = next_plan(FAT, peers, None)
    assert reason == ""
    (stage,) = plan.pipelines[0].stages
    assert {shard.peer for shard in stage.shards} == {"a", "b"}
    assert stage.dtype == "f32"
    assert next_plan(FAT, peers, plan, may_move=False) == (plan, "")  # and it stays


def test_devices_of_one_narrow_dtype_share_a_stage_in_it() -> None:
    peers = {name: narrow(capability_of(0.35 * FAT_BYTES), "f16") for name in "ab"}
    (stage,) = next_plan(FAT, peers, None)[0].pipelines[0].stages
    assert len(stage.shards) == 2
    assert stage.dtype == "f16"


def test_a_pipeline_stays_when_its_stages_are_told_their_dtypes_again() -> None:
    peers = {name: narrow(capability_of(5 * LAYER_BYTES, host=name)) for name in "ab"}
    plan, _ = next_plan(SPEC, peers, None)
    assert {stage.dtype for stage, _ in plan.shards()} == {"bf16"}
    assert next_plan(SPEC, peers, plan, may_move=False) == (plan, "")


def test_a_peer_that_comes_back_in_another_dtype_gets_its_stage_in_that() -> None:
    before, _ = next_plan(SPEC, {"a": capability_of(WHOLE)}, None)
    after, _ = next_plan(SPEC, {"a": narrow(capability_of(WHOLE))}, before, may_move=False)
    assert [stage.dtype for stage, _ in (*before.shards(), *after.shards())] == ["f32", "bf16"]
    assert after != before


def test_a_plan_document_carries_dtypes_and_without_one_a_stage_is_f32() -> None:
    stages = Stage(0, 3, (Shard("a/0", 8, 8),), dtype="bf16"), Stage(3, 8, (Shard("b/0", 8, 8),))
    document = PlanDocument(Plan((Pipeline(stages),)), 1, "a", SPEC.digest)
    assert PlanDocument.of_bytes(document.to_bytes()) == document
    form = document.plan.to_json()["pipelines"][0]["stages"]
    assert [stage.get("dtype") for stage in form] == ["bf16", None]
    with pytest.raises(ValueError, match="dtype"):
        PlanDocument.of_bytes(document.to_bytes().replace(b"bf16", b"f8"))


def real_bytes(spec: ModelSpec, stage: Stage, shard: Shard, device: Device) -> float:
    """What a shard takes on its device: weights, its part of the ends, KV of a planned session."""
    width = WIDTHS[stage.dtype]
    weight = device.weight_bytes if stage.dtype == device.dtype else float(width)
    heads, blocks = shard.kv / spec.kv_heads, shard.mlp / spec.mlp_blocks
    held = heads * spec.attention_parameters + blocks * spec.mlp_parameters
    cache = PLANNED_TOKENS * spec.kv_bytes(shard.kv, width)
    leads = shard is stage.shards[0]
    ends = float((stage.start == 0) + (stage.end == spec.layers and leads))
    if stage.shares_ends:
        ends = ((stage.start == 0) + (stage.end == spec.layers)) / len(stage.shards)
    return stage.layers * (held * weight + cache) + ends * spec.embedding_parameters * width


PEERS = st.lists(
    st.tuples(
        st.sampled_from(["f32", "bf16", "f16", "int8"]),
        st.floats(0.04, 0.9),  # of the model's layers in f32
        st.booleans(),
    ),
    min_size=2,
    max_size=5,
)


@pytest.mark.parametrize("spec", [SPEC, FAT], ids=["eight layers", "one layer"])
@settings(max_examples=8, deadline=None)
@given(found=PEERS)
def test_what_is_planned_fits_every_device_in_the_dtype_of_its_stage(
    spec: ModelSpec, found: list[tuple[str, float, bool]]
) -> None:
    check_plan(spec, found)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, FAT], ids=["eight layers", "one layer"])
@settings(max_examples=100, deadline=None)
@given(found=PEERS)
def test_whatever_is_planned_fits_every_device_in_the_dtype_of_its_stage(
    spec: ModelSpec, found: list[tuple[str, float, bool]]
) -> None:
    check_plan(spec, found)


def check_plan(spec: ModelSpec, found: list[tuple[str, float, bool]]) -> None:
    peers = {}
    for number, (form, share, is_near) in enumerate(found):
        memory = share * spec.layers * spec.layer_parameters * 4
        peer = capability_of(memory, host="host" if is_near else f"host {number}")
        if form == "int8":
            peer = replace(peer, devices=[replace(peer.devices[0], weight_bytes=1.1)])
        peers[f"peer{number}"] = narrow(peer, form) if form in ("bf16", "f16") else peer
    plan, _ = next_plan(spec, peers, None)
    for stage, shard in plan.shards():
        device = peers[shard.peer].devices[0]
        assert stage.dtype in ("f32", device.dtype)
        assert real_bytes(spec, stage, shard, device) <= device.memory_bytes * (1 + 1e-9)
    assert next_plan(spec, peers, plan, may_move=False)[0] == plan


# ---------------------------------------------------------------- what members agree on


def device_of(stage: Stage, rank: int) -> tuple[LocalDevice, ScriptedWorker]:
    """A device whose node has accepted a plan with this stage."""
    plan_store = SimpleNamespace(
        assignment_of=lambda _device: Assignment(stage, rank), pipeline_of=lambda _device: None
    )
    channel, worker = MemoryWorld().channel(ME), ScriptedWorker()
    parts = (channel, None, plan_store, str(FOLDER), None, "", "127.0.0.1", None)
    context = DeviceContext(*cast("Any", parts))
    return LocalDevice(context, 0, 1000, cast("WorkerProcess", worker)), worker


PAIR = Stage(0, 4, (Shard(f"{LEADER}/0", 4, 4), Shard(f"{ME}/0", 4, 4)), dtype="bf16")
REQUEST = {"start": 0, "end": 4, "rank": 1, "word": "prepare", "group": "g", "device": 0}


def request_with(dtype: str) -> GroupRequest:
    return GroupRequest.from_wire(REQUEST | {"dtype": dtype})


def test_a_member_follows_a_leader_of_the_same_dtype_only() -> None:
    device, _ = device_of(PAIR, 1)
    assert device.expects(LEADER, request_with("bf16"))
    assert not device.expects(LEADER, request_with("f16"))
    old = GroupRequest.from_wire(REQUEST)  # a leader that knows of no dtypes means f32
    assert not device.expects(LEADER, old)
    assert device_of(replace(PAIR, dtype="f32"), 1)[0].expects(LEADER, old)
    with pytest.raises(PeerRefused, match="another shard"):
        device._assignment_for(LEADER, request_with("f32"))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_worker_is_told_the_dtype_of_its_stage(dtype: str) -> None:
    stage = replace(PAIR, dtype=dtype)
    device, worker = device_of(stage, 1)
    device.shard_state = ShardState(Assignment(stage, 1), "g", 0.0)
    device._load("g", [])
    spec = _spec_of(worker.last(Load))
    assert (spec.dtype, spec.rank, spec.kv_bounds) == (dtype, 1, (0, 4, 8))
