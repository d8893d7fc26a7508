"""RateLimit counts per peer, forgets old peers, and never waits."""

from swarm.p2p.rate_limit import PEERS_REMEMBERED, Budget, RateLimit


def test_each_peer_has_a_rate_of_its_own() -> None:
    limit = RateLimit(2)
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    assert limit.allows("b")


def test_no_more_than_a_bounded_number_of_peers_is_remembered() -> None:
    limit = RateLimit(1)
    for number in range(PEERS_REMEMBERED + 10):
        assert limit.allows(str(number))
    assert len(limit._throttlers) == PEERS_REMEMBERED


def test_a_budget_is_spent_and_fills_up_again() -> None:
    seconds = 0.0
    budget = Budget(2, 5, lambda: seconds)
    assert budget.takes("a", 5)
    assert not budget.takes("a")
    assert budget.takes("b", 5)
    seconds = 1.0
    assert budget.takes("a", 2)
    assert not budget.takes("a")
    seconds = 1000.0
    assert not budget.takes("a", 6)
    assert budget.takes("a", 5)


def test_a_budget_remembers_a_bounded_number_of_peers() -> None:
    budget = Budget(1, 1)
    for number in range(PEERS_REMEMBERED + 10):
        assert budget.takes(str(number))
    assert len(budget._left) == PEERS_REMEMBERED


def test_bytes_are_counted_by_peer_and_come_back_with_time() -> None:
    now = [0.0]
    budget = Budget(100, 1000, lambda: now[0])
    assert budget.takes("a", 900)
    assert not budget.takes("a", 200)
    assert budget.takes("a", 100)  # what was refused is not counted
    assert budget.takes("b", 1000)
    now[0] += 2.0
    assert not budget.takes("a", 201)
    assert budget.takes("a", 200)
    now[0] += 1000.0
    assert not budget.takes("a", 1001)  # nobody saves up more than the burst


def test_peers_are_forgotten_in_the_order_of_their_last_word() -> None:
    budget = Budget(1, 10, lambda: 0.0)
    for number in range(PEERS_REMEMBERED + 1):
        assert budget.takes(str(number), 10)
    assert budget.takes("0", 10)
    assert not budget.takes(str(PEERS_REMEMBERED), 1)
