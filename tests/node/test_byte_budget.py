"""A peer may send some bytes at once, then so many per second; others are not concerned."""

from node.serving.byte_budget import PEERS_REMEMBERED, ByteBudget


def test_bytes_are_counted_by_peer_and_come_back_with_time() -> None:
    now = [0.0]
    budget = ByteBudget(100, 1000, lambda: now[0])
    assert budget.allows("a", 900)
    assert not budget.allows("a", 200)
    assert budget.allows("a", 100)  # what was refused is not counted
    assert budget.allows("b", 1000)
    now[0] += 2.0
    assert not budget.allows("a", 201)
    assert budget.allows("a", 200)
    now[0] += 1000.0
    assert not budget.allows("a", 1001)  # nobody saves up more than the burst


def test_peers_are_forgotten_in_the_order_of_their_last_word() -> None:
    budget = ByteBudget(1, 10, lambda: 0.0)
    for number in range(PEERS_REMEMBERED + 1):
        assert budget.allows(str(number), 10)
    assert budget.allows("0", 10)
    assert not budget.allows(str(PEERS_REMEMBERED), 1)
