"""Peer scores: speeds as seen, not as said; who failed is left alone for a growing while."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from client.routing.peer_scores import (
    LONGEST_COOLDOWN_SECONDS,
    MOST_PEERS,
    REMEMBERED_SECONDS,
    Cooldowns,
    PeerScores,
    usual_layer_seconds,
)
from client.routing.route import Need, Place, Route
from client.routing.route_finder import PLAN_SECONDS, Places, RouteFinder
from swarm.errors import PeerLost, PeerMisbehaved
from swarm.records import Advert, Member, StageAdvert
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.client.scripted import LAYERS, SPEC
from tests.client.skipping import run_skipping

NEED = Need(SPEC.digest, LAYERS, 100)
HONEST_SECONDS = 0.01


class Hands:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stage_of(peer: str, seconds: float, start: int = 0, end: int = LAYERS) -> StageAdvert:
    return StageAdvert(start, end, [Member(peer, 0, 2, 1)], seconds, 10_000, 0)


async def route_finder_of(claims: dict[str, float], places: Places | None = None) -> RouteFinder:
    """What a client knows of peers that all serve the whole model."""
    world = MemoryWorld()
    for name, seconds in claims.items():
        stage = stage_of(peer_named(name), seconds)
        await world.board(peer_named(name)).publish(Advert(SPEC.digest, [stage], 1))
    return RouteFinder(world.board(peer_named("client")), SPEC, chance=Random(1), places=places)


async def taken(route_finder: RouteFinder, sessions: int) -> Counter[str]:
    """How many sessions go to whom, one after the other."""
    routes = [await route_finder.find(NEED, fresh=False) for _ in range(sessions)]
    return Counter(route.leaders[0] for route in routes)


def run(story: Callable[[], object]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


def test_a_liar_who_claims_no_time_gets_no_more_sessions_than_others() -> None:
    async def story() -> None:
        names = dict.fromkeys("abc", HONEST_SECONDS)
        counts = await taken(await route_finder_of(names | {"eve": 0.0}), 400)
        assert set(counts) == {peer_named(name) for name in ("a", "b", "c", "eve")}
        assert max(counts.values()) < 160

    run(story)


def test_a_peer_in_no_plan_gets_nothing_while_a_planned_one_has_room() -> None:
    async def story() -> None:
        planned = [peer_named(name) for name in ("a", "quick")]

        async def places() -> frozenset[Place]:
            return frozenset((peer, 0, LAYERS) for peer in planned)

        route_finder = await route_finder_of(
            {"a": 0.1, "eve": 0.0, "quick": 0.001, "z": 0.1}, places
        )
        assert set(await taken(route_finder, 100)) == {peer_named("quick")}, "the planner knows it"
        assert (await route_finder.find(replace(NEED, capacity=10**6), fresh=False)).leaders

    run(story)


def test_a_plan_that_does_not_come_delays_no_session_for_long() -> None:
    async def story() -> None:
        async def places() -> frozenset[Place]:
            await asyncio.sleep(3600)
            return frozenset()

        route_finder = await route_finder_of({"a": 0.1, "b": 0.1}, places)
        await route_finder.find(NEED, fresh=False)
        assert asyncio.get_running_loop().time() == pytest.approx(PLAN_SECONDS, abs=0.1)

    run_skipping(story())


def test_nobody_asks_for_the_plan_where_there_is_no_choice() -> None:
    async def story() -> None:
        async def places() -> frozenset[Place]:
            raise AssertionError("asked in vain")

        await (await route_finder_of({"a": 0.1}, places)).find(NEED, fresh=False)

    run(story)


def test_sessions_of_many_clients_spread_over_comparable_routes_only() -> None:
    async def story() -> None:
        counts = await taken(await route_finder_of({"a": 0.010, "b": 0.011, "slow": 0.1}), 200)
        assert counts[peer_named("a")] > counts[peer_named("b")] > 20
        assert peer_named("slow") not in counts

    run(story)


def test_a_peer_that_is_slower_than_it_says_is_found_out_by_the_time_that_passes() -> None:
    async def story() -> None:
        route_finder = await route_finder_of({"a": HONEST_SECONDS, "b": HONEST_SECONDS})
        for name, seconds in (("a", 0.5), ("b", HONEST_SECONDS)):
            route = Route((stage_of(peer_named(name), HONEST_SECONDS),))
            for _ in range(10):
                route_finder.took(route, [[0, 0, 0]], seconds)  # it owns up to nothing
        assert set(await taken(route_finder, 50)) == {peer_named("b")}

    run(story)


def test_a_peer_that_has_shown_to_be_quicker_than_most_say_is_believed() -> None:
    async def story() -> None:
        route_finder = await route_finder_of({"a": 0.1, "b": 0.1, "c": 0.1, "quick": 0.001})
        assert len(await taken(route_finder, 100)) == 4
        route = Route((stage_of(peer_named("quick"), 0.001),))
        route_finder.took(route, [[0, 900, 0]], 0.001)
        assert set(await taken(route_finder, 50)) == {peer_named("quick")}

    run(story)


def test_hidden_time_is_shared_by_all_stages_of_a_route() -> None:
    scores = PeerScores(Hands())
    parts = stage_of("honest", 0.01, 0, 3), stage_of("hider", 0.01, 3, 6)
    scores.took(Route(parts), [[1000, 9000, 500], [0, 0, 0]], 0.1105, Counter())
    assert scores.step_seconds(parts[0], 0.0) == pytest.approx(0.06)
    assert scores.step_seconds(parts[1], 0.0) == pytest.approx(0.05)
    better = stage_of("other", 0.01, 3, 6)
    for _ in range(40):
        scores.took(Route((parts[0], better)), [[0, 10_000, 0], [0, 9000, 0]], 0.019, Counter())
    assert scores.step_seconds(parts[0], 0.0) == pytest.approx(0.01, rel=0.01)


def test_nobody_can_say_that_he_took_more_than_the_time_that_passed() -> None:
    scores = PeerScores(Hands())
    parts = stage_of("a", 0.01, 0, 3), stage_of("b", 0.01, 3, 6)
    scores.took(Route(parts), [[3_600_000_000, 0, 0], [0, 10_000, 0]], 0.02, Counter())
    assert scores.step_seconds(parts[0], 0.0) == pytest.approx(0.02)


def test_speeds_are_forgotten_after_a_while_and_never_too_many() -> None:
    hands = Hands()
    scores = PeerScores(hands)
    for number in range(MOST_PEERS + 10):
        scores.took(Route((stage_of(f"p{number}", 0.01),)), [], 1.0, Counter())
    assert len(scores._speeds) == MOST_PEERS
    known = stage_of(f"p{MOST_PEERS}", 0.01)
    assert scores.step_seconds(known, 0.0) == 1.0
    hands.now += REMEMBERED_SECONDS + 1
    assert scores.step_seconds(known, 0.0) == 0.01


def test_own_sessions_on_a_stage_do_not_make_it_look_slower() -> None:
    scores = PeerScores(Hands())
    stage = stage_of("a", 0.01)
    scores.took(Route((stage,)), [[0, 20_000, 0]], 0.02, {"a": 11})
    assert scores.step_seconds(stage, 0.0) == pytest.approx(0.01)


def test_a_rest_doubles_with_each_failure_up_to_a_bound_and_shrinks_with_success() -> None:
    hands = Hands()
    cooldowns = Cooldowns(hands, 1.0, 600.0)
    rests = []
    for _ in range(12):
        cooldowns.strike("eve", weight=2.0)
        rests.append(cooldowns.seconds_left(["eve", "other"]))
    assert rests[:4] == [2, 4, 8, 16]
    assert rests[-1] == 600
    assert cooldowns.cooling_down == {"eve"}
    hands.now += 601
    assert cooldowns.cooling_down == frozenset()
    cooldowns.strike("eve", weight=2.0)
    assert cooldowns.cooling_down == {"eve"}, "its strikes are remembered"
    for _ in range(13):
        cooldowns.forgive(["eve"])
    assert cooldowns.all == frozenset()


def test_strikes_are_forgotten_after_a_while_and_never_too_many() -> None:
    hands = Hands()
    cooldowns = Cooldowns(hands, 1.0, 600.0)
    for number in range(MOST_PEERS + 10):
        cooldowns.strike(f"p{number}")
    assert len(cooldowns.all) == MOST_PEERS
    hands.now += REMEMBERED_SECONDS + 2
    cooldowns.strike("new")
    assert cooldowns.all == {"new"}


def test_a_lie_costs_more_than_a_loss_and_a_shared_suspicion_least() -> None:
    scores = PeerScores(Hands())
    scores.failed(["lost"], PeerLost("gone"))
    scores.failed(["liar"], PeerMisbehaved("an id beyond the vocabulary"))
    scores.failed(["one", "two"], PeerLost("somebody was late"))
    left = {peer: scores.cooldowns.seconds_left([peer]) for peer in ("lost", "liar", "one", "two")}
    assert left["liar"] > left["lost"] > left["one"] == left["two"] > 0
    assert left["liar"] < LONGEST_COOLDOWN_SECONDS


def test_the_usual_is_the_median_of_claims_of_this_model() -> None:
    adverts = [Advert("m", [stage_of(f"p{n}", seconds)], 1) for n, seconds in enumerate([0, 6, 6])]
    other = Advert("other", [stage_of("q", 0.0)] * 9, 1)
    assert usual_layer_seconds([*adverts, other], "m") == 6 / LAYERS
    assert usual_layer_seconds([], "m") == 0.0
