"""Bootstrap peers: an invite names peers that stay, in several homes, and where they are."""

from swarm.dht.bootstrap_peers import (
    ADDRESSES,
    PEERS,
    bootstrap_addresses,
    relay_addresses,
    relays_in,
    without_circuits,
)
from swarm.hardware import Device
from swarm.invites import peer_of_address
from swarm.records import Capability, Relay
from swarm.testing.memory_network import peer_named

DEVICE = Device(0, "cpu", "CPU", 10**9, 1e9, 1e9)
ME = peer_named("me")
OWN = (f"/ip4/127.0.0.1/tcp/1/p2p/{ME}", f"/ip4/203.0.113.1/tcp/1/p2p/{ME}")


def seen(
    since: float, *, home: str = "", reachable: bool = True, leaving: bool = False
) -> Capability:
    return Capability(
        "m",
        [DEVICE],
        [],
        host=home,
        reachable=reachable,
        since=since,
        leaving=leaving,
        addresses=["/ip4/127.0.0.1/tcp/2", "/ip4/10.0.0.2/tcp/2", "/ip4/203.0.113.2/tcp/2"],
    )


def peers_of(addresses: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(map(peer_of_address, addresses)))


def named(**peers: Capability) -> dict[str, Capability]:
    return {peer_named(name): each for name, each in peers.items()}


def test_our_own_node_comes_first_then_those_of_other_homes_the_oldest_first() -> None:
    known = named(
        new=seen(9, home="a"),
        old=seen(1, home="b"),
        beside=seen(2, home="b"),
        far=seen(3, home="c"),
    )
    found = peers_of(bootstrap_addresses(OWN, known, {}))
    assert found == [ME, *map(peer_named, ("old", "far", "new"))]
    assert len(found) == PEERS


def test_who_leaves_is_not_named_and_who_cannot_be_reached_only_at_the_end() -> None:
    known = named(gone=seen(1, leaving=True), hidden=seen(1, reachable=False), open=seen(5))
    assert peers_of(bootstrap_addresses((), known, {})) == [
        peer_named("open"),
        peer_named("hidden"),
    ]


def test_addresses_are_public_before_private_and_loopback_only_where_there_is_nothing_else() -> (
    None
):
    found = bootstrap_addresses((), named(one=seen(1)), {}, homes={"10.0.0.0/24"})
    assert found == tuple(
        f"/ip4/{host}/tcp/2/p2p/{peer_named('one')}" for host in ("203.0.113.2", "10.0.0.2")
    )
    assert bootstrap_addresses(OWN[:1], {}, {}) == OWN[:1]
    many = tuple(f"/ip4/203.0.113.{n}/tcp/1/p2p/{ME}" for n in range(9))
    assert len(bootstrap_addresses(many, {}, {})) == ADDRESSES


def test_relays_fill_the_places_that_members_leave() -> None:
    relays = {
        peer_named("relay"): Relay(["/ip4/203.0.113.9/tcp/4001"], 1.0),
        peer_named("ended"): Relay(["/ip4/203.0.113.8/tcp/4001"], 0.0, leaving=True),
        peer_named("empty"): Relay([], 0.0),
    }
    at = f"/ip4/203.0.113.9/tcp/4001/p2p/{peer_named('relay')}"
    assert relay_addresses(relays) == (at,)
    assert bootstrap_addresses(OWN, {}, relays)[-1] == at


def test_an_address_that_is_none_is_left_out() -> None:
    odd = Capability(
        "m", [DEVICE], [], "", True, 1.0, addresses=["", "nonsense", "/ip4/1.2.3.4/tcp/1"]
    )
    found = bootstrap_addresses((), {peer_named("odd"): odd}, {})
    assert found == (f"/ip4/1.2.3.4/tcp/1/p2p/{peer_named('odd')}",)


def test_private_addresses_are_named_of_our_own_home_alone_unless_there_is_nothing_else() -> None:
    near, far = at("10.0.0.2", "near"), at("192.168.7.2", "far")
    public = at("203.0.113.2", "far")
    known = (near, far, public)
    assert bootstrap_addresses((), {}, {}, known, {"10.0.0.0/24"}) == (near, public)
    assert bootstrap_addresses((), {}, {}, (near, far), ()) == (near, far)
    assert bootstrap_addresses((), {}, {}, (near, far), {"192.168.7.0/24"}) == (far,)


def test_remembered_peers_fill_what_members_and_relays_leave() -> None:
    remembered = [at(f"203.0.113.{n}", f"old {n}") for n in range(9)]
    again = at("198.51.100.1", "open")  # where it was before: the board knows better
    found = bootstrap_addresses(OWN, named(open=seen(1)), {}, [again, *remembered])
    assert peers_of(found) == [ME, *map(peer_named, ("open", "old 0", "old 1"))]
    assert again not in found


def test_relays_are_remembered_by_the_addresses_that_go_through_them() -> None:
    relay = at("203.0.113.9", "relay")
    circuit = f"{relay}/p2p-circuit/p2p/{peer_named('home')}"
    assert relays_in([OWN[0], circuit, circuit]) == (relay,)
    assert without_circuits([OWN[0], circuit]) == (OWN[0],)
    running = {peer_named("relay"): Relay(["/ip4/203.0.113.8/tcp/1"], 1.0)}
    assert relay_addresses(running, [relay]) == (at("203.0.113.8", "relay"),)
    assert relay_addresses({}, [relay]) == (relay,)


def at(host: str, name: str) -> str:
    return f"/ip4/{host}/tcp/1/p2p/{peer_named(name)}"
