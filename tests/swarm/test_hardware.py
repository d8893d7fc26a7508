"""One rule says how far two peers are apart: measured, else by their hosts, and alike for all."""

import pytest

from client.routing.route import HopTimes
from planner.live_problem import PeerLinks
from planner.problem import PlanDevice
from swarm.hardware import LEAST_SECONDS, SAME_HOST, UNKNOWN, Link, Links, Way
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
