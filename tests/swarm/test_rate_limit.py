"""RateLimit counts per peer, forgets old peers, and never waits."""

from swarm.rate_limit import PEERS_REMEMBERED, RateLimit


def test_each_peer_has_a_rate_of_its_own() -> None:
    limit = RateLimit(2)
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    assert limit.allows("b")


def test_no_more_than_a_bounded_number_of_peers_is_remembered() -> None:
    limit = RateLimit(1)
    for number in range(PEERS_REMEMBERED + 10):
        assert limit.allows(str(number))
    assert len(limit._throttlers) == PEERS_REMEMBERED
