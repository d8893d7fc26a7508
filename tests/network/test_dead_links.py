"""Links that die one way, and a network that parts and heals: answers stay exact."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from tests.network.conftest import model_of
from tests.network.hosted_swarm import Asking, HostedSwarm, swarm_on
from tests.network.hosts import Host
from tests.network.laboratory import Laboratory
from tests.network.wire import Wire
from tests.whole.swarms import Nodes, Part, shard_bytes, wait_until

pytestmark = pytest.mark.network

PREFIX = "11.0.0"
APART_SECONDS = 0.03  # one way: an answer of many tokens takes a while
MANY = 200  # tokens
LOST_SECONDS = 1.0  # a pause that tells that tokens did come from what was cut
ELSEWHERE_SECONDS = 12.0  # a step's own deadline is 5 s, and a route elsewhere takes a moment
PARTED_SECONDS = 40.0
HEALED_SECONDS = 60.0


def whole_twice(
    lab: Laboratory, wire: Wire, nodes: Nodes, model: Path
) -> tuple[HostedSwarm, Mapping[str, Host]]:
    """Two hosts that each serve the whole model, and a third with a client."""
    hosts = {name: lab.host(name) for name in ("one", "two", "person")}
    for at, host in enumerate(hosts.values()):
        lab.attach(host, wire, at + 1)
    wire.everywhere(delay_seconds=APART_SECONDS)
    spec = read_spec(model, str(model))
    size = shard_bytes(spec, spec.layers, spec.kv_heads, spec.mlp_blocks, ends=2)
    serving = ("one", "two")
    parts = [Part(name, size) for name in serving]
    swarm = swarm_on([hosts[name] for name in serving], parts, nodes, model)
    swarm.wait_until_ready()
    return swarm, hosts


def address_of(host: Host) -> str:
    return host.addresses[0]


def heard_from(wire: Wire, hosts: Mapping[str, Host]) -> dict[str, int]:
    """Bytes from each node to the client so far."""
    person = address_of(hosts["person"])
    return {
        name: wire.carried(address_of(hosts[name]), person).carried_bytes for name in ("one", "two")
    }


def server_of(asking: Asking, wire: Wire, hosts: Mapping[str, Host]) -> str:
    """Which node sends the tokens, seen by what comes from each while some arrive."""
    asking.wait_for_pieces(5)
    before = heard_from(wire, hosts)
    asking.wait_for_pieces(20)
    after = heard_from(wire, hosts)
    return max(after, key=lambda name: after[name] - before[name])


def test_tokens_go_on_over_another_host_when_nothing_from_the_first_arrives_any_more(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """The first still hears the client, and its connection stays open."""
    wire = lab.wire(PREFIX)
    swarm, hosts = whole_twice(lab, wire, nodes, model_of(tmp_path / "model", layers=2))
    asking = swarm.ask_from(hosts["person"], MANY)
    first = server_of(asking, wire, hosts)
    wire.cut_one_way(address_of(hosts[first]), address_of(hosts["person"]))
    assert asking.ids() == swarm.expected(MANY)
    assert LOST_SECONDS < asking.longest_pause < ELSEWHERE_SECONDS


def view(swarm: HostedSwarm, host: Host) -> tuple[set[str], str]:
    """Who is there and who plans, as `swarm status` says on a host."""
    status = swarm.seen_from(host)
    return {peer["name"] for peer in status["peers"]}, status["planner"]


@pytest.mark.slow
def test_an_answer_survives_that_the_network_parts_and_one_swarm_is_left_when_it_heals(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """The node that serves the client is in the other half."""
    wire = lab.wire(PREFIX)
    swarm, hosts = whole_twice(lab, wire, nodes, model_of(tmp_path / "model", layers=2))
    swarm.invite = swarm.nodes[1].remembered_invite()  # of both
    asking = swarm.ask_from(hosts["person"], MANY)
    first = server_of(asking, wire, hosts)
    away = address_of(hosts[first])
    wire.part([away], [address_of(host) for host in hosts.values()])
    parted = time.monotonic()
    assert asking.ids() == swarm.expected(MANY)
    assert LOST_SECONDS < asking.longest_pause < ELSEWHERE_SECONDS
    wait_until(lambda: view(swarm, hosts["person"])[0] == {"one", "two"} - {first}, PARTED_SECONDS)
    assert swarm.answer_on(hosts["person"]) == swarm.expected()
    assert swarm.answer_on(hosts[first]) == swarm.expected()  # the other half serves, too
    wait_until(lambda: time.monotonic() - parted > PARTED_SECONDS, PARTED_SECONDS)
    wire.heal()

    def is_one_swarm() -> bool:
        seen = [view(swarm, hosts[name]) for name in ("one", "two")]
        return seen[0] == seen[1] and seen[0][0] == {"one", "two"} and bool(seen[0][1])

    wait_until(is_one_swarm, HEALED_SECONDS)
    assert swarm.answer_on(hosts["person"]) == swarm.expected()
