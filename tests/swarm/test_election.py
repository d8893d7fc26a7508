"""Election: all observers agree, leases end in time, absurd terms do no harm."""

from hypothesis import given
from hypothesis import strategies as st

from swarm.election import TERM_JUMP, PlanOrder, candidates, is_credible, may_act, rank
from swarm.records import Capability

peers = st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=8)
orders = st.builds(
    PlanOrder, st.integers(0, 50), st.integers(0, 5), st.sampled_from(["aa", "bb", "cc"])
)


def capability(since: float, *, reachable: bool = True, leaving: bool = False) -> Capability:
    return Capability("d", [], [], "host", reachable, since, leaving=leaving)


@given(peers, st.integers(0, 9))
def test_rank_is_the_same_in_any_order_and_loses_only_the_leaver(
    names: list[str], era: int
) -> None:
    ranked = rank("swarm", era, names)
    assert ranked == rank("swarm", era, reversed(names))
    assert sorted(ranked) == sorted(names)
    assert rank("swarm", era, ranked[1:]) == ranked[1:]


def test_eras_and_swarms_spread_the_office() -> None:
    names = [f"peer{i}" for i in range(10)]
    firsts = {rank("s", era, names)[0] for era in range(100)}
    assert len(firsts) >= 8
    assert any(rank("s", e, names) != rank("t", e, names) for e in range(5))


def test_candidates_are_live_reachable_and_settled() -> None:
    known = {
        "old": capability(0),
        "new": capability(95),
        "hidden": capability(0, reachable=False),
        "gone": capability(0, leaving=True),
    }
    assert candidates(100, known, 10) == ["old"]
    assert candidates(100, {"new": known["new"], "hidden": known["hidden"]}, 10) == ["new"]
    assert candidates(100, {"hidden": known["hidden"]}, 10) == ["hidden"]
    assert candidates(100, {}, 10) == []


def test_a_planner_stops_before_others_think_its_lease_over() -> None:
    assert may_act(100.0, 100.0)
    assert may_act(111.9, 100.0)
    assert not may_act(112.1, 100.0)
    assert not may_act(99.0, 100.0)


@given(orders, orders, orders)
def test_plan_order_is_total_and_strict(a: PlanOrder, b: PlanOrder, c: PlanOrder) -> None:
    assert (a < b) + (b < a) + (a == b) == 1
    if a < b < c:
        assert a < c
    assert not a < a


def test_higher_term_wins_then_better_rank_then_digest() -> None:
    old = PlanOrder(3, 1, "aa")
    assert PlanOrder(4, 5, "aa") > old
    assert PlanOrder(3, 0, "aa") > old
    assert PlanOrder(3, 1, "bb") > old
    assert not PlanOrder(2, 0, "zz") > old
    assert not is_credible(4 + TERM_JUMP, verified=old.term)
    assert is_credible(3 + TERM_JUMP, verified=old.term)
