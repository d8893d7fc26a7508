"""Networks: which peers share one, and how seldom the daemon is asked."""

import asyncio

import pytest

from swarm.dht.peer_networks import Networks, network_of
from swarm.errors import Unreachable


@pytest.mark.parametrize(
    ("addresses", "network"),
    [
        (["/ip4/10.1.2.3/tcp/1/p2p/Q"], "10.1.2.0/24"),
        (["/ip6/2001:db8:1:2::3/tcp/1"], "2001:db8:1::/48"),
        (["/dns4/example.org/tcp/1", "/ip4/10.1.2.3/tcp/1"], "10.1.2.0/24"),
        (["/ip4/nonsense", "/", "", "ip4"], ""),
        ([], ""),
    ],
)
def test_a_network_follows_from_an_address(addresses: list[str], network: str) -> None:
    assert network_of(addresses) == network


def test_strangers_cannot_make_the_daemon_busy() -> None:
    looks = 0

    async def connected() -> dict[str, tuple[str, ...]]:
        nonlocal looks
        looks += 1
        return {"known": ("/ip4/10.1.2.3/tcp/1",)}

    async def story() -> None:
        seconds = 100.0
        networks = Networks(connected, lambda: seconds)
        found = await asyncio.gather(*(networks.of(f"stranger{n}") for n in range(50)))
        assert found == [""] * 50
        assert await networks.of("known") == "10.1.2.0/24"
        assert looks == 1
        seconds += 1
        await networks.of("stranger")
        assert looks == 2

    asyncio.run(story())


def test_a_daemon_that_does_not_answer_leaves_the_network_unknown() -> None:
    async def connected() -> dict[str, tuple[str, ...]]:
        raise Unreachable("The own p2pd does not answer.")

    assert asyncio.run(Networks(connected).of("peer")) == ""
