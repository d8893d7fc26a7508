"""One rule says how far two peers are apart: measured, else by their hosts, and alike for all."""

from dataclasses import replace

import pytest

from client.routing.route import HopTimes
from planner.live_problem import PeerLinks
from planner.problem import PlanDevice
from swarm.hardware import (
    LEAST_SECONDS,
    PUNCHED,
    SAME_HOST,
    UNKNOWN,
    UNKNOWN_RELAYED,
    Link,
    Links,
    Way,
)
from swarm.records import Capability


def capability(*links: Link, host: str = "home") -> Capability:
    return Capability("model", [], list(links), host, True, 0.0)


def test_the_receiver_knows_better_how_fast_bytes_come_in_else_the_sender_is_asked() -> None:
    links = Links.of(
        {
            "anna": capability(Link("bert", 0.02, 1e6), host="a"),
            "bert": capability(Link("anna", 0.04, 5e6), Link("carl", 0.06, 3e6), host="b"),
            "carl": capability(host="c"),
        }
    )
    assert links.way("anna", "bert") == Way(0.02, 5e6)  # as Bert measured it
    assert links.way("bert", "anna") == Way(0.01, 1e6)
    assert links.way("carl", "bert") == links.way("bert", "carl") == Way(0.03, 3e6)


def test_what_nobody_measured_is_near_on_one_host_and_far_elsewhere() -> None:
    links = Links.of({"anna": capability(), "bert": capability(), "carl": capability(host="c")})
    assert links.way("anna", "bert") == SAME_HOST
    assert links.way("anna", "carl") == links.way("anna", "nobody") == UNKNOWN
    assert links.way("nobody", "no one") == UNKNOWN


def test_a_claim_to_be_nearer_than_any_two_processes_is_taken_as_that() -> None:
    links = Links.of({"anna": capability(Link("bert", 0.0, 1e6)), "bert": capability(host="b")})
    assert links.way("anna", "bert").seconds == LEAST_SECONDS


@pytest.mark.parametrize("other", ["bert", "carl", "dora"])
def test_planner_and_client_take_every_way_to_be_equally_long(other: str) -> None:
    capabilities = {
        "anna": capability(Link("bert", 0.02, 1e6)),
        "bert": capability(host="b"),
        "carl": capability(),
        "dora": capability(host="d"),
    }
    anna, second = (PlanDevice(f"{peer}/0", peer, 1e12, 1e11, 1e9) for peer in ("anna", other))
    planned, _ = PeerLinks(Links.of(capabilities))(anna, second)
    assert HopTimes.of(capabilities).seconds("anna", other) == planned


def behind(home: str, *links: Link, relays: tuple[str, ...] = ("relay",)) -> Capability:
    known = capability(*links, host=f"a machine of {home}{len(links)}")
    return replace(known, reachable=False, relays=list(relays), home=home)


def test_an_unmeasured_way_between_two_homes_leads_through_a_relay() -> None:
    peers = {"anna": behind("a"), "bert": behind("b"), "carl": capability(host="c")}
    links = Links.of(peers | {"anne": behind("a", Link("bert", 0.2, 1e6, PUNCHED))})
    assert links.way("anna", "bert") == UNKNOWN_RELAYED
    assert links.way("anna", "carl") == links.way("carl", "anna") == UNKNOWN
    assert links.way("anna", "anne") == UNKNOWN
    assert links.way("bert", "anne") == Way(0.1, 1e6, PUNCHED)
    assert HopTimes.of(peers).seconds("anna", "bert") == UNKNOWN_RELAYED.seconds


def test_sockets_lead_to_who_can_be_dialled_and_within_a_home() -> None:
    peers = {"anna": behind("a"), "anne": behind("a", Link("x", 1, 1)), "bert": behind("b")}
    links = Links.of(peers | {"carl": capability(host="c"), "dora": capability(host="d")})
    pairs = [("anna", "anne"), ("carl", "dora"), ("anna", "bert"), ("anna", "carl")]
    assert [links.can_dial(*pair) for pair in pairs] == [True, True, False, False]


def test_without_a_relay_only_who_is_met_at_home_can_be_reached() -> None:
    lonely = behind("a", relays=())
    seen = capability(Link("anna", 0.1, 1e6), host="c")  # over a connection that she opened
    assert Links.of({"anna": lonely}).unreached == frozenset()  # nobody is there to dial her
    assert Links.of({"anna": lonely, "carl": seen}).unreached == {"anna"}
    assert Links.of({"anna": behind("a"), "carl": seen}).unreached == frozenset()
    near = behind("a", Link("anna", 0.1, 1e6))
    assert Links.of({"anna": lonely, "anne": near, "carl": seen}).unreached == frozenset()
