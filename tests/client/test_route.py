"""Routes: the cheapest full chain, and what is said when there is none."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.route import Need, choose_route, hop_seconds_of
from swarm.errors import NoRoute
from swarm.hardware import Link
from swarm.records import Advert, Capability, Member, StageAdvert

LAYERS = 6
NEED = Need("m", LAYERS, 100)


def stage(peer: str, start: int, end: int, seconds: float = 0.01, free: int = 1000) -> StageAdvert:
    return StageAdvert(start, end, [Member(peer, 0, 2, 1)], seconds, free, 0)


def advert(*stages: StageAdvert, model: str = "m", leaving: bool = False) -> Advert:
    return Advert(model, list(stages), 1, leaving)


def test_stages_of_unequal_length_chain_up() -> None:
    route = choose_route(
        [advert(stage("b", 4, 6)), advert(stage("a", 0, 4)), advert(stage("c", 1, 6))], NEED
    )
    assert route.leaders == ("a", "b")
    assert route.to_wire() == [["a", 0, 4], ["b", 4, 6]]


def test_one_peer_may_lead_several_stages_of_a_route() -> None:
    route = choose_route([advert(stage("a", 0, 4), stage("a", 4, 6))], NEED)
    assert route.leaders == ("a", "a")


def test_faster_stages_win_and_few_hops_count() -> None:
    slow, fast = stage("slow", 0, 6, 0.5), [stage("a", 0, 3, 0.01), stage("b", 3, 6, 0.01)]
    assert choose_route([advert(slow), *map(advert, fast)], NEED).leaders == ("a", "b")
    near = stage("one", 0, 6, 0.021)
    assert choose_route([advert(near), *map(advert, fast)], NEED).leaders == ("one",)


def test_measured_links_decide_between_equal_stages() -> None:
    def capability(*links: Link) -> Capability:
        return Capability("m", [], list(links), "host", True, 0.0)

    hop = hop_seconds_of(
        {"a": capability(Link("far", 0.2, 1e6)), "near": capability(Link("a", 0.01, 1e6))}
    )
    assert hop("a", "far") == 0.1
    assert hop("a", "near") == hop("near", "a") == 0.005
    assert hop("a", "a") == 0
    adverts = [advert(stage("a", 0, 3)), advert(stage("far", 3, 6)), advert(stage("near", 3, 6))]
    assert choose_route(adverts, NEED, hop).leaders == ("a", "near")


@pytest.mark.parametrize(
    "worse",
    [
        advert(stage("worse", 0, 6, 0.001), leaving=True),
        advert(stage("worse", 0, 6, 0.001, free=99)),
    ],
)
def test_leaving_and_full_stages_come_last_but_do_come(worse: Advert) -> None:
    assert choose_route([worse, advert(stage("better", 0, 6, 1.0))], NEED).leaders == ("better",)
    assert choose_route([worse], NEED).leaders == ("worse",)


def test_blamed_peers_are_avoided_while_there_is_another_way() -> None:
    blamed = Need("m", LAYERS, 100, frozenset({"a"}))
    adverts = [advert(stage("a", 0, 6)), advert(stage("b", 0, 6, 3.0, free=0), leaving=True)]
    assert choose_route(adverts, blamed).leaders == ("b",)
    assert choose_route(adverts[:1], blamed).leaders == ("a",)


def test_own_sessions_spread_over_equal_pipelines() -> None:
    adverts = [advert(stage("a", 0, 6)), advert(stage("b", 0, 6, 0.0101))]
    own: Counter[str] = Counter()
    for _ in range(10):
        own.update(choose_route(adverts, NEED, None, own).leaders)
    assert own == {"a": 5, "b": 5}


def test_a_blamed_member_counts_though_another_leads() -> None:
    pair = StageAdvert(0, 6, [Member("a", 0, 1, 1), Member("b", 0, 1, 1)], 0.01, 1000, 0)
    blamed = Need("m", LAYERS, 100, frozenset({"b"}))
    assert choose_route([advert(pair), advert(stage("c", 0, 6, 1))], blamed).leaders == ("c",)


def test_other_models_and_nonsense_are_ignored() -> None:
    nonsense = [
        advert(stage("a", 0, 6), model="other"),
        advert(stage("b", 0, 7)),
        advert(stage("d", 0, 6, float("nan"))),
        advert(stage("e", 0, 6, float("inf"))),
    ]
    with pytest.raises(NoRoute, match=r"\[0,6\) of 6"):
        choose_route(nonsense, NEED)


def test_missing_layers_are_named() -> None:
    with pytest.raises(NoRoute, match=r"layers \[1,2\), \[4,6\) of 6"):
        choose_route([advert(stage("a", 0, 1)), advert(stage("b", 2, 4))], NEED)


def test_stages_that_do_not_join_up_are_said_to_be_so() -> None:
    with pytest.raises(NoRoute, match="join up"):
        choose_route([advert(stage("a", 0, 4)), advert(stage("b", 3, 6))], NEED)


@given(st.integers(0, 10**6))
def test_no_chain_is_cheaper_than_the_chosen_one(seed: int) -> None:
    chance = random.Random(seed)
    stages = []
    for number in range(7):
        start = chance.randrange(LAYERS)
        end = chance.randint(start + 1, LAYERS)
        stages.append(stage(f"p{number}", start, end, chance.random()))

    def hop(one: str, other: str) -> float:
        return (int(one[1:]) * 7 + int(other[1:]) * 3) % 5 / 10

    def cost(chain: tuple[StageAdvert, ...]) -> float:
        pairs = itertools.pairwise(s.members[0].peer for s in chain)
        return sum(s.step_seconds for s in chain) + sum(hop(a, b) for a, b in pairs)

    chains = [
        chain
        for size in range(1, 5)
        for chain in itertools.permutations(stages, size)
        if chain[0].start == 0
        and chain[-1].end == LAYERS
        and all(a.end == b.start for a, b in itertools.pairwise(chain))
    ]
    if chains:
        best = min(cost(chain) for chain in chains)
        found = cost(choose_route(map(advert, stages), NEED, hop).stages)
        assert found <= best + 1e-12
