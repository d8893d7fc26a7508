"""Routes: the cheapest full chain, and what is said when there is none."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.routing.route import (
    LEAST_LAYER_SECONDS,
    HopTimes,
    Known,
    Need,
    choose_route,
    claimed_seconds,
)
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

    hops = HopTimes.of(
        {"a": capability(Link("far", 0.2, 1e6)), "near": capability(Link("a", 0.01, 1e6))}
    )
    assert hops.seconds("a", "far") == 0.1
    assert hops.seconds("a", "near") == hops.seconds("near", "a") == 0.005
    assert hops.seconds("a", "a") == 0
    adverts = [advert(stage("a", 0, 3)), advert(stage("far", 3, 6)), advert(stage("near", 3, 6))]
    assert choose_route(adverts, NEED, Known(hops)).leaders == ("a", "near")


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


def test_of_blamed_peers_those_come_first_that_have_failed_less_often() -> None:
    both = Need("m", LAYERS, 100, frozenset({"a", "b"}), {"a": 2, "b": 1})
    adverts = [advert(stage("a", 0, 6)), advert(stage("b", 0, 6, 3.0))]
    assert choose_route(adverts, both).leaders == ("b",)
    beside = [advert(stage("a", 0, 6)), advert(stage("c", 0, 2), stage("b", 2, 6))]
    assert choose_route(beside, both).leaders[-1] == "b"


def test_own_sessions_spread_over_equal_pipelines() -> None:
    adverts = [advert(stage("a", 0, 6)), advert(stage("b", 0, 6, 0.0101))]
    own: Counter[str] = Counter()
    for _ in range(10):
        own.update(choose_route(adverts, NEED, Known(own=own)).leaders)
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
    with pytest.raises(NoRoute, match="layers 0-5 of 6"):
        choose_route(nonsense, NEED)


def test_missing_layers_are_named() -> None:
    with pytest.raises(NoRoute, match="layers 1, 4-5 of 6"):
        choose_route([advert(stage("a", 0, 1)), advert(stage("b", 2, 4))], NEED)


def test_stages_that_do_not_join_up_are_said_to_be_so() -> None:
    with pytest.raises(NoRoute, match="join up"):
        choose_route([advert(stage("a", 0, 4)), advert(stage("b", 3, 6))], NEED)


@given(st.integers(0, 10**6))
def test_no_chain_is_cheaper_than_the_chosen_one(seed: int) -> None:
    chance = random.Random(seed)
    stages = []
    for number in range(9):
        start = chance.randrange(LAYERS)
        end = chance.randint(start + 1, LAYERS)
        peer = f"p{number % 7}"  # some peers lead two stages
        stages.append(stage(peer, start, end, chance.choice([0.0, 0.01, 0.02, chance.random()])))
    hops = HopTimes.of(
        {
            f"p{number}": Capability("m", [], random_links(chance), chance.choice("xyz"), True, 0)
            for number in range(chance.randint(0, 7))
        }
    )

    def cost(chain: tuple[StageAdvert, ...]) -> float:
        pairs = itertools.pairwise(s.members[0].peer for s in chain)
        return sum(claimed_seconds(s) for s in chain) + sum(hops.seconds(a, b) for a, b in pairs)

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
        found = cost(choose_route(map(advert, stages), NEED, Known(hops)).stages)
        assert found <= best + 1e-12


def random_links(chance: random.Random) -> list[Link]:
    others = chance.sample(range(7), chance.randint(0, 3))
    return [Link(f"p{other}", chance.choice([0.0, 0.001, 0.03, 0.2]), 1e6) for other in others]


def crowd(peers: int, layers: int, chance: random.Random) -> tuple[list[Advert], HopTimes]:
    """As many peers, stages and links as the board's caps let in, all of them comparable."""
    adverts, capabilities = [], {}
    for number in range(peers):
        starts = [chance.randrange(layers) for _ in range(20)]
        stages = [stage(f"p{number}", start, start + 1, 0.01) for start in starts]
        adverts.append(advert(*stages))
        links = [Link(f"p{chance.randrange(peers)}", 0.01, 1e6) for _ in range(64)]
        capabilities[f"p{number}"] = Capability("m", [], links, f"h{number % 3}", True, 0.0)
    return adverts, HopTimes.of(capabilities)


def test_the_search_asks_for_hops_in_proportion_to_stages_and_links() -> None:
    class Counted(HopTimes):
        asked = 0

        def seconds(self, one: str, other: str) -> float:
            Counted.asked += 1
            return super().seconds(one, other)

    adverts, hops = crowd(300, 8, random.Random(1))
    counted = Counted(hops.measured, hops.places)
    choose_route(adverts, Need("m", 8, 100), Known(counted))
    links = sum(map(len, hops.measured.values()))
    assert Counted.asked <= 8 * (links + 3 * 300)
    assert Counted.asked < (300 * 20 / 8) ** 2 * 7 / 10, "each stage with each: far more"


def test_a_claim_of_no_time_at_all_is_taken_as_the_least_that_is_possible() -> None:
    liar, honest = stage("liar", 0, 6, 0.0), stage("honest", 0, 6, LAYERS * LEAST_LAYER_SECONDS)
    own = Counter({"liar": 1})
    assert choose_route([advert(liar), advert(honest)], NEED, Known(own=own)).leaders == ("honest",)


def test_only_trusted_peers_serve_where_text_is_seen() -> None:
    need = replace(NEED, ends=frozenset({"a", "c"}))
    slow = [stage("a", 0, 2, 0.5), stage("c", 4, 6, 0.5)]
    fast = [stage("x", 0, 2), stage("b", 2, 4), stage("x", 4, 6), stage("x", 0, 6)]
    assert choose_route(map(advert, [*slow, *fast]), need).leaders == ("a", "b", "c")
    for missing, word in ((slow[0], "first"), (slow[1], "last")):
        offers = [each for each in [*slow, *fast] if each is not missing]
        with pytest.raises(NoRoute, match=f"No peer trusted with text serves the {word} layers"):
            choose_route(map(advert, offers), need)
    with pytest.raises(NoRoute, match="serves layers 2-3"):
        choose_route(map(advert, slow), need)


def test_every_member_of_a_stage_at_an_end_sees_text() -> None:
    pair = StageAdvert(0, 6, [Member("a", 0, 1, 1), Member("x", 0, 1, 0)], 0.01, 1000, 0)
    assert choose_route([advert(pair)], replace(NEED, ends=frozenset({"a", "x"})))
    with pytest.raises(NoRoute, match="trusted"):
        choose_route([advert(pair)], replace(NEED, ends=frozenset({"a"})))


def test_absurd_claims_of_all_peers_do_not_hide_who_is_blamed() -> None:
    offers = [advert(stage(name, 0, LAYERS, 1.7e308)) for name in ("anna", "bert")]
    for blamed, taken in (("anna", "bert"), ("bert", "anna")):
        need = Need("m", LAYERS, 10, avoid=frozenset({blamed}))
        assert choose_route(offers, need).leaders == (taken,)
