"""The planner's work: whole pipelines stay, the rest is planned, and what is missing is said."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.control.next_plan import (
    PIPELINES_CAP,
    REASON_CAP,
    WORD_CAP,
    PlanDocument,
    next_plan,
    reserves_of,
)
from planner.cost.cost_model import CostModel
from planner.live_problem import live_problem
from swarm.model_spec import BYTES_PER_VALUE, PLANNED_TOKENS
from swarm.p2p.plan_document import digest_of
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import TERM_CAP, Advert, Capability, Member, StageAdvert
from tests.node.memberships import LAYER_BYTES, SPEC, WHOLE, capability_of

WHOLE_ON_A = Plan((Pipeline((Stage(0, 8, (Shard("a/0", 8, 8),)),)),))


def devices_of(plan: Plan) -> set[str]:
    return {shard.device for _, shard in plan.shards()}


def is_feasible(plan: Plan, capabilities: dict[str, Capability]) -> bool:
    problem = live_problem(
        SPEC,
        capabilities,
        bytes_per_weight=BYTES_PER_VALUE,
        bytes_per_value=BYTES_PER_VALUE,
        context=PLANNED_TOKENS,
    )
    return not CostModel(problem).reasons(plan)


def test_unlike_peers_get_one_feasible_pipeline_over_all_layers() -> None:
    peers = {"a": capability_of(6 * LAYER_BYTES), "b": capability_of(5 * LAYER_BYTES, speed=5e8)}
    plan, reason = next_plan(SPEC, peers, None)
    assert reason == ""
    assert [pipeline.layers for pipeline in plan.pipelines] == [SPEC.layers]
    assert devices_of(plan) == {"a/0", "b/0"}
    assert is_feasible(plan, peers)


def test_a_pipeline_whose_peers_are_all_here_stays_as_it_is() -> None:
    peers = {"a": capability_of(), "b": capability_of(speed=4e9)}
    plan, _ = next_plan(SPEC, peers, WHOLE_ON_A, may_move=False)
    assert plan.pipelines[0] == WHOLE_ON_A.pipelines[0]
    assert devices_of(plan) == {"a/0", "b/0"}


def test_where_nobody_is_left_there_is_no_plan_and_a_reason_whatever_was_in_force() -> None:
    for before in (None, WHOLE_ON_A):
        plan, reason = next_plan(SPEC, {}, before)
        assert plan == Plan(())
        assert "the devices offer 0 B" in reason


def test_newcomers_that_fit_form_a_pipeline_of_their_own() -> None:
    peers = {"a": capability_of(), "b": capability_of(5 * LAYER_BYTES)}
    before, _ = next_plan(SPEC, peers, WHOLE_ON_A, may_move=False)
    assert before == WHOLE_ON_A
    peers["c"] = capability_of(6 * LAYER_BYTES)
    after, _ = next_plan(SPEC, peers, before, may_move=False)
    assert after.pipelines[0] == WHOLE_ON_A.pipelines[0]
    assert len(after.pipelines) == 2
    assert {"b/0", "c/0"} == devices_of(Plan(after.pipelines[1:]))


def test_every_device_of_a_peer_is_planned_for() -> None:
    plan, _ = next_plan(SPEC, {"a": capability_of(5 * LAYER_BYTES, 6 * LAYER_BYTES)}, None)
    assert devices_of(plan) == {"a/0", "a/1"}


def test_a_pipeline_that_lost_a_peer_is_repaired_with_those_that_are_left() -> None:
    peers = {name: capability_of(6 * LAYER_BYTES) for name in "abc"}
    plan, _ = next_plan(SPEC, peers, None)
    used = sorted(devices_of(plan))
    lost = used[-1].partition("/")[0]
    del peers[lost]
    repaired, reason = next_plan(SPEC, peers, plan, may_move=False)
    assert reason == ""
    assert repaired.pipelines[0].layers == SPEC.layers
    assert lost not in {device.partition("/")[0] for device in devices_of(repaired)}
    assert is_feasible(repaired, peers)


def test_a_pipeline_that_serves_is_not_taken_apart_for_what_is_left_of_another() -> None:
    """Nobody would serve while both loaded, however much faster that is afterwards."""
    halves = [f"half {number}" for number in range(2)]
    peers = {"whole": capability_of(WHOLE, speed=1e8)}
    peers |= {name: capability_of(6 * LAYER_BYTES, speed=4e9) for name in halves}
    before, _ = next_plan(SPEC, peers, None)
    assert len(before.pipelines) == 2
    del peers["half 0"]
    for may_move in (True, False):
        after, _ = next_plan(SPEC, peers, before, may_move=may_move)
        assert [devices_of(Plan((line,))) for line in after.pipelines] == [{"whole/0"}]


def test_of_several_pipelines_one_stays_whatever_is_better() -> None:
    shard = {name: (Shard(f"{name}/0", 8, 8),) for name in "abcd"}
    slow = [
        Pipeline((Stage(0, 7, shard[a]), Stage(7, 8, shard[b])))
        for a, b in (("a", "b"), ("c", "d"))
    ]
    peers = {name: capability_of(WHOLE, speed=1e7) for name in "ac"}
    peers |= {name: capability_of(WHOLE, speed=4e9) for name in "bd"}
    plan, _ = next_plan(SPEC, peers, Plan(tuple(slow)))
    assert plan != Plan(tuple(slow))
    assert set(slow) & set(plan.pipelines)


def test_what_peers_serve_beside_the_plan_is_used_where_a_stage_is_lost() -> None:
    def stage(start: int, end: int, name: str) -> Stage:
        return Stage(start, end, (Shard(f"{name}/0", 8, 8),))

    peers = {name: capability_of(6 * LAYER_BYTES, host=name) for name in "abcd"}
    before = Plan((Pipeline((stage(0, 4, "a"), stage(4, 8, "gone"))),))
    reserve = stage(4, 8, "c")
    plan, _ = next_plan(SPEC, peers, before, reserves=[reserve], may_move=False)
    assert Pipeline((stage(0, 4, "a"), reserve)) in plan.pipelines
    empty, _ = next_plan(SPEC, peers, Plan(()), reserves=[stage(0, 4, "b"), reserve])
    assert Pipeline((stage(0, 4, "b"), reserve)) in empty.pipelines


def test_only_whole_stages_of_able_peers_beside_the_plan_are_reserves() -> None:
    def advert(start: int, end: int, *members: Member) -> Advert:
        return Advert(SPEC.digest, [StageAdvert(start, end, list(members), 0.1, 9, 0)], 1)

    adverts = [
        advert(0, 8, Member("a", 0, 8, 8)),  # as planned
        advert(0, 4, Member("b", 0, 8, 8)),
        advert(4, 8, Member("b", 0, 8, 8)),  # of the same device
        advert(4, 8, Member("c", 0, 4, 8)),  # not all of it
        advert(4, 9, Member("c", 0, 8, 8)),
        advert(0, 4, Member("nobody", 0, 8, 8)),
    ]
    found = reserves_of(SPEC, adverts, {"a", "b", "c"}, WHOLE_ON_A)
    assert found == (Stage(0, 4, (Shard("b/0", 8, 8),)),)


def test_too_little_memory_says_how_many_bytes_are_missing() -> None:
    plan, reason = next_plan(SPEC, {"a": capability_of(3 * LAYER_BYTES)}, None)
    assert plan == Plan(())
    assert "are missing" in reason


def test_a_group_that_nobody_can_connect_is_named_as_the_reason_not_memory() -> None:
    layer = replace(SPEC, layers=1)
    half = capability_of(1.2 * LAYER_BYTES)
    homes = {name: replace(half, home=name, host=name, reachable=False) for name in ("a", "b")}
    together = {name: replace(each, home="", reachable=True) for name, each in homes.items()}
    assert next_plan(layer, together, None)[0].pipelines
    plan, reason = next_plan(layer, homes, None)
    assert plan == Plan(())
    assert "nobody outside can dial a, b" in reason
    assert "--announce" in reason
    assert "missing" not in reason
    alone = {"a": homes["a"]}
    assert "missing" in next_plan(layer, alone, None)[1], "dialling would not help"


def test_too_little_memory_after_a_loss_says_so_too() -> None:
    small = {"b": capability_of(LAYER_BYTES)}
    plan, reason = next_plan(SPEC, small, WHOLE_ON_A, may_move=False)
    assert plan == Plan(())
    assert "are missing" in reason


def test_a_swarm_without_devices_is_told_what_it_needs() -> None:
    plan, reason = next_plan(SPEC, {}, None)
    assert plan == Plan(())
    assert "missing" in reason


def test_leftovers_that_do_not_fit_the_model_are_spares() -> None:
    peers = {"a": capability_of(), "b": capability_of(LAYER_BYTES / 4)}
    plan, reason = next_plan(SPEC, peers, None)
    assert reason == ""
    assert devices_of(plan) == {"a/0"}


@pytest.mark.parametrize("may_move", [True, False])
def test_the_same_peers_and_plan_make_the_same_plan_again(may_move: bool) -> None:
    peers = {name: capability_of(5 * LAYER_BYTES, speed=1e9 + ord(name)) for name in "abcd"}
    one, _ = next_plan(SPEC, peers, None)
    again, _ = next_plan(SPEC, dict(reversed(peers.items())), one, may_move=may_move)
    assert again == one


def test_a_device_that_shrank_no_longer_holds_what_it_held() -> None:
    peers = {"a": capability_of(3 * LAYER_BYTES), "b": capability_of(WHOLE)}
    plan, reason = next_plan(SPEC, peers, WHOLE_ON_A, may_move=False)
    assert reason == ""
    assert is_feasible(plan, peers)


# ---------------------------------------------------------------- documents


def test_a_document_survives_the_wire_and_its_name_depends_on_every_field() -> None:
    document = PlanDocument(WHOLE_ON_A, 4, "a", SPEC.digest, reason="why not")
    data = document.to_bytes()
    assert PlanDocument.of_bytes(data) == document
    assert digest_of(data) != digest_of(PlanDocument(WHOLE_ON_A, 5, "a", SPEC.digest).to_bytes())


@given(st.binary(max_size=60))
def test_bytes_that_are_no_document_raise_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of the many kinds
        PlanDocument.of_bytes(data)


@pytest.mark.parametrize(
    "words",
    [
        {"reason": "\ud800"},
        {"reason": "\x1b]52;c;QQ==\x07"},
        {"reason": "a\nb"},
        {"reason": "r" * (REASON_CAP + 1)},
        {"planner": "p" * (WORD_CAP + 1)},
        {"planner": "\x9b2J"},
        {"objective": "o" * (WORD_CAP + 1)},
        {"model": "\ud800"},
        {"term": TERM_CAP + 1},
        {"term": -1},
    ],
)
def test_a_document_whose_words_cannot_be_shown_is_refused(words: dict[str, object]) -> None:
    values = json.loads(PlanDocument(WHOLE_ON_A, 4, "a", SPEC.digest).to_bytes())
    with pytest.raises(ValueError, match=r"printable|term"):
        PlanDocument.of_bytes(json.dumps(values | words).encode())


@pytest.mark.parametrize("device", ["\ud800/0", "a\x1b[2J/0", "d" * WORD_CAP + "/0"])
def test_a_document_that_names_a_device_in_a_strange_way_is_refused(device: str) -> None:
    plan = Plan((Pipeline((Stage(0, 8, (Shard(device, 8, 8),)),)),))
    with pytest.raises(ValueError, match="printable"):
        PlanDocument(plan, 4, "a", SPEC.digest)


def test_a_document_of_more_parts_than_any_swarm_has_is_refused() -> None:
    many = Plan(tuple(Pipeline(()) for _ in range(PIPELINES_CAP + 1)))
    with pytest.raises(ValueError, match="at most"):
        PlanDocument(many, 4, "a", SPEC.digest)
    long = Plan((Pipeline(tuple(Stage(n, n + 1, (Shard(f"a/{n}", 8, 8),)) for n in range(513))),))
    with pytest.raises(ValueError, match="at most"):
        PlanDocument(long, 4, "a", SPEC.digest)


def test_the_fields_of_a_later_version_are_left_out_of_a_document() -> None:
    document = PlanDocument(WHOLE_ON_A, 4, "a", SPEC.digest)
    values = json.loads(document.to_bytes()) | {"new": {"deep": [1]}}
    assert PlanDocument.of_bytes(json.dumps(values).encode()) == document


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["plan", "term", "planner", "pipelines", "extra"]))
def test_a_document_with_a_strange_field_is_read_or_refused(value: object, name: str) -> None:
    values = json.loads(PlanDocument(WHOLE_ON_A, 4, "a", SPEC.digest).to_bytes())
    if name == "pipelines":
        values["plan"] = {"pipelines": value}
    else:
        values[name] = value
    try:
        document = PlanDocument.of_bytes(json.dumps(values).encode())
    except ValueError:
        return
    assert type(document.term) is int
    assert type(document.planner) is str
    assert type(document.reason) is str


@pytest.mark.parametrize(("kv", "mlp"), [(0, 0), (-1, 2)])
def test_a_stage_of_a_member_that_holds_nothing_is_no_reserve(kv: int, mlp: int) -> None:
    stage = StageAdvert(0, 1, [Member("a", 0, kv, mlp)], 1.0, 0, 0)
    assert reserves_of(SPEC, [Advert("d", [stage], 0)], {"a"}, None) == ()
