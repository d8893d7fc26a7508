"""With whom a planner plans: peers that answer, make sense, are calm and keep their word."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from node.control.eligible_peers import (
    BYTES_PER_SECOND_CAP,
    CALMED_SECONDS,
    OUT_SECONDS,
    RESTLESS_CHANGES,
    STILL_SECONDS,
    UNREACHED_SECONDS,
    Choice,
    EligiblePeers,
)
from node.control.promises import SERVE_SECONDS
from swarm.hardware import Link
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Advert, Capability, Member, StageAdvert
from tests.node.memberships import LAYER_BYTES, SPEC, capability_of

STAGES = (Stage(0, 4, (Shard("anna/0", 8, 8),)), Stage(4, 8, (Shard("bert/0", 8, 8),)))
PLAN = Plan((Pipeline(STAGES),))
PEERS = {name: capability_of() for name in ("anna", "bert", "carl")}
SERVED = {
    stage.shards[0].peer: Advert(
        SPEC.digest,
        [StageAdvert(stage.start, stage.end, [Member(stage.shards[0].peer, 0, 8, 8)], 0.1, 9, 0)],
        1,
    )
    for stage in STAGES
}


class Watch:
    """EligiblePeers, and the seconds that pass."""

    def __init__(self) -> None:
        self.eligible_peers = EligiblePeers(SPEC)
        self.now = 1000.0

    def look(
        self,
        peers: Mapping[str, Capability] = PEERS,
        adverts: Mapping[str, Advert] = SERVED,
        *,
        after: float = 1.0,
    ) -> Choice:
        """Let time pass and choose."""
        self.now += after
        seen: Any = SimpleNamespace(present=peers, adverts=adverts)
        return self.eligible_peers.choose(seen, PLAN, self.now)


def with_memory(layers: float) -> dict[str, Capability]:
    return PEERS | {"carl": capability_of(layers * LAYER_BYTES)}


def test_everybody_who_serves_or_is_new_counts() -> None:
    assert Watch().look() == Choice(PEERS, {})


def test_who_has_paused_is_lost_to_plans_and_counts_again_when_he_resumes() -> None:
    watch = Watch()
    paused = replace(PEERS["bert"], devices=[], paused=True)
    assert set(watch.look().able) == set(PEERS)
    choice = watch.look(PEERS | {"bert": paused})
    assert set(choice.able) == {"anna", "carl"}
    assert not choice.doubtful
    assert set(watch.look(after=60.0).able) == set(PEERS)


def test_a_peer_that_changes_again_and_again_is_left_out_until_it_is_calm() -> None:
    watch = Watch()
    for number in range(RESTLESS_CHANGES - 1):
        assert "carl" in watch.look(with_memory(1 + number)).able
    for number in range(20):
        choice = watch.look(with_memory(20 + number))
        assert choice.able.keys() == {"anna", "bert"}
        assert not choice.doubtful
    last = with_memory(39)
    assert "carl" not in watch.look(last, after=STILL_SECONDS - 1).able
    still = watch.look(last, after=2.0)
    assert "carl" in still.able
    assert "carl" in still.on_trial  # so that no serving pipeline is given up for it
    assert not watch.look(last, after=CALMED_SECONDS).on_trial


def test_a_peer_that_comes_and_goes_is_left_out_too() -> None:
    watch = Watch()
    two = {peer: PEERS[peer] for peer in ("anna", "bert")}
    seen = ["carl" in watch.look(PEERS if number % 2 else two).able for number in range(20)]
    assert sum(seen) <= RESTLESS_CHANGES / 2
    assert not any(seen[RESTLESS_CHANGES + 1 :])


def test_one_change_now_and_then_is_nothing() -> None:
    watch = Watch()
    for number in range(10):
        assert "carl" in watch.look(with_memory(1 + number), after=60.0).able


def test_the_peers_of_a_stage_that_is_not_served_in_time_are_out_for_a_growing_while() -> None:
    watch = Watch()
    only_bert = {"bert": SERVED["bert"]}
    watch.look(PEERS, only_bert)
    assert "anna" in watch.look(PEERS, only_bert, after=SERVE_SECONDS - 1).able
    for pause in (OUT_SECONDS, 2 * OUT_SECONDS, 4 * OUT_SECONDS):
        while "anna" in (choice := watch.look(PEERS, only_bert)).able:
            assert watch.now < 2000.0
        assert choice.doubtful.keys() == {"anna"}
        began = watch.now
        if pause > 2 * SERVE_SECONDS:
            break
        served = watch.eligible_peers._promises._missing_since
        served.clear()  # as after a plan without it
        seen: Any = SimpleNamespace(present=PEERS, adverts=SERVED)
        while "anna" not in watch.eligible_peers.choose(seen, None, watch.now).able:
            watch.now += 1.0
        assert watch.now - began == pytest.approx(pause, abs=2.0)


def test_a_leader_that_serves_other_layers_than_planned_does_not_serve() -> None:
    watch = Watch()
    wrong = replace(SERVED["anna"].stages[0], end=5)
    lying = SERVED | {"anna": replace(SERVED["anna"], stages=[wrong])}
    watch.look(PEERS, lying)
    assert "anna" not in watch.look(PEERS, lying, after=SERVE_SECONDS + 2).able


def test_who_serves_as_planned_is_forgiven() -> None:
    watch = Watch()
    watch.look(PEERS, {})
    assert watch.look(PEERS, {}, after=SERVE_SECONDS + 2).doubtful.keys() == {"anna", "bert"}
    back = watch.look(PEERS, {}, after=OUT_SECONDS)
    assert back.on_trial == {"anna", "bert"}
    assert back.proven.keys() == {"carl"}
    assert not watch.look(PEERS, SERVED).on_trial
    assert all(conduct.failures == 0 for conduct in watch.eligible_peers._conduct.values())


@pytest.mark.parametrize(
    "claim",
    [
        {"bytes_per_second": 2 * BYTES_PER_SECOND_CAP},
        {"flops": 1e30},
        {"memory_bytes": 2**60},
        {"weight_bytes": 1e-9},
    ],
)
def test_who_claims_what_no_device_can_do_is_not_planned_for(claim: dict[str, Any]) -> None:
    device = replace(PEERS["carl"].devices[0], **claim)
    liars = PEERS | {"carl": replace(PEERS["carl"], devices=[device])}
    assert Watch().look(liars).able.keys() == {"anna", "bert"}


def test_what_is_remembered_of_peers_that_are_gone_ends() -> None:
    watch = Watch()
    for number in range(50):
        watch.look({f"peer {number}": PEERS["carl"]}, {})
    watch.look({}, {}, after=8000.0)
    watch.look({}, {}, after=100.0)
    assert watch.eligible_peers._conduct.keys() <= {"anna", "bert"}


def linked(host: str, *others: str) -> Capability:
    return capability_of(host=host, links=[Link(each, 0.01, 1e7) for each in others])


CHAIN = {"anna": linked("a"), "bert": linked("b", "anna"), "carl": linked("c", "bert")}
RING = {str(n): linked(str(n), *(str((n + k) % 30) for k in range(1, 5))) for n in range(30)}


@pytest.mark.parametrize(
    ("peers", "is_measured"),
    [
        ({"anna": linked("home")}, True),
        ({"anna": linked("home"), "bert": linked("home")}, True),
        ({"anna": linked("home"), "bert": linked("hall")}, False),
        ({"anna": linked("home"), "bert": linked("hall", "anna")}, True),
        (CHAIN, False),
        (CHAIN | {"anna": linked("a", "carl")}, True),
        (RING, True),
        (RING | {"0": linked("0")}, False),
    ],
)
def test_ways_between_machines_are_measured_and_those_within_one_need_not_be(
    peers: dict[str, Capability], is_measured: bool
) -> None:
    assert Choice(peers, {}).is_measured == is_measured


HOMELY = replace(PEERS["carl"], reachable=False, home="a home", host="its machine")


def test_a_newcomer_that_nobody_can_reach_is_left_out_until_it_has_a_relay() -> None:
    watch = Watch()
    choice = watch.look(PEERS | {"carl": HOMELY})
    assert (set(choice.able), set(choice.unreached)) == ({"anna", "bert"}, {"carl"})
    assert not choice.doubtful
    relayed = replace(HOMELY, relays=["/ip4/192.0.2.1/tcp/4001"])
    assert "carl" in watch.look(PEERS | {"carl": relayed}).able


def test_a_peer_that_serves_has_a_while_to_find_another_relay() -> None:
    watch, lost = Watch(), PEERS | {"anna": HOMELY}
    watch.look()
    assert "anna" in watch.look(lost).able
    assert "anna" in watch.look(lost, after=UNREACHED_SECONDS - 1).able
    assert watch.look(lost, after=2.0).unreached == {"anna"}
    assert "anna" in watch.look().able


def test_who_can_be_dialled_calls_for_another_plan() -> None:
    watch = Watch()
    before = watch.look(PEERS | {"carl": replace(HOMELY, relays=["relay"])}).shapes
    assert watch.look().shapes != before


def test_a_home_that_becomes_known_calls_for_no_other_plan_where_everybody_can_be_dialled() -> None:
    known = replace(PEERS["anna"], home="a home")
    assert Choice(PEERS, {}).shapes == Choice(PEERS | {"anna": known}, {}).shapes
    relayed = {"carl": replace(HOMELY, relays=["/ip4/192.0.2.1/tcp/4001"])}
    with_carl = PEERS | relayed
    assert Choice(with_carl, {}).shapes != Choice(with_carl | {"anna": known}, {}).shapes
