"""Whole nodes behind routers, and what a person on some host gets and sees of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from swarm.hardware import DIRECT, PUNCHED, RELAYED
from swarm.invites import Invite
from swarm.model_spec import BYTES_PER_VALUE
from swarm.p2p.link_kinds import is_direct, why_relayed
from tests.network.conftest import model_of
from tests.network.hosted_swarm import HostedSwarm, swarm_on
from tests.network.hosts import Host, Network
from tests.network.laboratory import Laboratory
from tests.network.p2pd_connections import connections_of_p2pd
from tests.whole.reference_model import ids_of
from tests.whole.swarms import START_SECONDS, NodeProcess, Nodes, Part, shard_bytes, wait_until

pytestmark = [pytest.mark.network, pytest.mark.nodes, pytest.mark.slow]

PORT = ("--port", "4001")
LONG_TEXT, MANY = "Once upon a time " * 40, 160
FIRST_CIRCUIT_BYTES = 1 << 17  # that a relay lets pass before it knows itself to be public
FULL_ROWS = ("--activations", "full")  # hidden rows as they are, so that their bytes are known
HALVES = ("one", "two")
PLANNED_SECONDS = 60.0  # for who is behind a router, from when it can do its part
BETWEEN_HALVES = frozenset(HALVES)
TREES = ("elm", "ash", "oak", "fir", "yew")


def row_bytes(model: Path) -> int:
    """Of a hidden row in full."""
    return read_spec(model, str(model)).hidden * BYTES_PER_VALUE


def halves(model: Path) -> list[Part]:
    """Two nodes of which each holds half of the model's layers."""
    spec = read_spec(model, str(model))
    size = shard_bytes(spec, 2, spec.kv_heads, spec.mlp_blocks, ends=1)
    return [Part(name, size) for name in HALVES]


def homes_on(lab: Laboratory, outer: Network, names: Sequence[str]) -> list[Host]:
    """A host for each name, each in a home of its own; all have the same private address."""
    hosts = [lab.host(name) for name in names]
    for number, host in enumerate(hosts, 101):
        lab.attach(host, lab.home(f"{host.name}-home", outer, number).network, 2)
    return hosts


def public_hosts(lab: Laboratory, outer: Network, names: Sequence[str]) -> list[Host]:
    """A host for each name on the outer network."""
    hosts = [lab.host(name) for name in names]
    for number, host in enumerate(hosts, 10):
        lab.attach(host, outer, number)
    return hosts


def start_at_homes(swarm: HostedSwarm, nodes: Nodes, hosts: Sequence[Host]) -> None:
    """Let a node join on each host, and wait until both halves are served."""
    how = ("--join", swarm.invite, *PORT, *FULL_ROWS)
    for host, part in zip(hosts, halves(swarm.model), strict=True):
        swarm.nodes.append(nodes.start_behind(host.command, part, *how))
    swarm.wait_until_ready(-2, -1)


def has_two_relays(node: NodeProcess) -> bool:
    """Whether a node said last that it holds places at two relays."""
    said = [line for line in node.lines if line.startswith("reach: not reachable")]
    return bool(said) and " and " in said[-1].partition("relay")[2]


def ways_between(one: NodeProcess, other: NodeProcess) -> list[str]:
    """The multiaddrs at which one node is connected to another."""
    connected = connections_of_p2pd(one.process.pid)
    return [
        way for peer, ways in connected.items() if peer.endswith(other.peer_tail) for way in ways
    ]


def founded(lab_host: Host, nodes: Nodes, model: Path) -> HostedSwarm:
    """A swarm of one public node that has no room for a layer."""
    size = halves(model)[0].memory_bytes // 40
    swarm = swarm_on([lab_host], [Part(lab_host.name, size)], nodes, model, [PORT])
    swarm.nodes[0].line("waiting:")
    return swarm


def test_one_public_host_and_two_homes_serve_through_a_relay_that_cuts(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """The commonest swarm; its relay ends each circuit after 128 KiB, and no token is lost."""
    model, outer = model_of(tmp_path / "model", layers=4), lab.network("11.0.0")
    (public,), homes = public_hosts(lab, outer, ["founder"]), homes_on(lab, outer, HALVES)
    swarm = founded(public, nodes, model)
    start_at_homes(swarm, nodes, homes)
    for node in swarm.nodes[1:]:
        assert "joins through relay" in node.line("reach: not reachable from outside")
        assert node.seconds_to("plan:", since="offer:") < PLANNED_SECONDS
        taken = node.seconds_to("plan:")
        print(f"{node.part.name}: part of a plan after {taken:.1f} s")  # noqa: T201 - a figure
    assert len(ids_of(LONG_TEXT, model)) * row_bytes(model) > FIRST_CIRCUIT_BYTES
    asking = swarm.ask_from(public, MANY, LONG_TEXT)
    assert asking.ids() == swarm.expected(MANY, LONG_TEXT)
    links = swarm.links_from(public)
    assert links[BETWEEN_HALVES]["kind"] == RELAYED
    assert links[BETWEEN_HALVES]["why"] == why_relayed(public_hosts=1)
    assert {links[frozenset(("founder", name))]["kind"] for name in HALVES} == {DIRECT}


def test_when_the_relay_in_use_is_killed_in_mid_generation_no_token_is_lost(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    model, outer = model_of(tmp_path / "model", layers=4), lab.network("11.0.0")
    publics = public_hosts(lab, outer, ["founder", "elm", "person"])
    swarm = founded(publics[0], nodes, model)
    elm = nodes.start_relay(publics[1].command, "elm", swarm.invite, *PORT)
    elm.line("reach: dialed back")
    start_at_homes(swarm, nodes, homes_on(lab, outer, HALVES))
    for node in swarm.nodes[1:]:
        wait_until(partial(has_two_relays, node), START_SECONDS, node.said)
    asking = swarm.ask_from(publics[2], MANY)
    asking.wait_for_pieces(10)
    way = ways_between(*swarm.nodes[1:])[0]
    tail = elm.line("relay: elm (").partition(")")[0]
    in_use = publics[f"{tail}/p2p-circuit" in way]
    in_use.crash()
    assert asking.process.poll() is None
    assert asking.ids() == swarm.expected(MANY)
    print(f"{in_use.name} killed: pause of {asking.longest_pause:.2f} s")  # noqa: T201 - a figure


def test_a_hop_between_two_homes_goes_through_a_punched_hole_where_six_hosts_are_public(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    model, outer = model_of(tmp_path / "model", layers=4), lab.network("11.0.0")
    publics = public_hosts(lab, outer, ["founder", *TREES])
    swarm = founded(publics[0], nodes, model)
    relays = [nodes.start_relay(p.command, p.name, swarm.invite, *PORT) for p in publics[1:]]
    for relay in relays:
        relay.line("reach: dialed back")
    start_at_homes(swarm, nodes, homes_on(lab, outer, HALVES))
    one, other = swarm.nodes[1:]
    wait_until(lambda: is_direct(ways_between(one, other)), START_SECONDS, one.said)
    asking = swarm.ask_from(publics[0], MANY, LONG_TEXT)
    assert asking.ids(2 * START_SECONDS) == swarm.expected(MANY, LONG_TEXT)
    assert is_direct(ways_between(one, other))
    link = swarm.links_from(publics[0])[BETWEEN_HALVES]
    assert (link["kind"], link["why"]) == (PUNCHED, "")


def test_a_founder_behind_a_router_is_joined_through_the_relay_that_it_names(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    model, outer = model_of(tmp_path / "model", layers=4), lab.network("11.0.0")
    publics, homes = public_hosts(lab, outer, ["elm", "person"]), homes_on(lab, outer, HALVES)
    relay = nodes.start_relay(publics[0].command, "elm", "--alone", *PORT)
    address = relay.line("relay:").rpartition(" ")[2]
    parts, how = halves(model), (*PORT, "--relay", address)
    swarm = swarm_on(homes[:1], parts[:1], nodes, model, [how])
    assert Invite.parse(swarm.invite).relays == (address,)
    start = nodes.start_behind(homes[1].command, parts[1], "--join", swarm.invite, *PORT)
    swarm.nodes.append(start)
    swarm.wait_until_ready()
    assert swarm.answer_on(publics[1]) == swarm.expected()


def test_who_is_behind_a_router_where_nobody_relays_gets_no_part_and_is_told_why(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """A router within a private network, as that of a virtual machine: no relay has an address."""
    model, outer = model_of(tmp_path / "model", layers=4), lab.network("10.9.9")
    (open_host,), (shut, _) = public_hosts(lab, outer, ["open"]), homes_on(lab, outer, HALVES)
    whole = 2 * halves(model)[0].memory_bytes
    swarm = swarm_on([open_host], [Part("open", whole)], nodes, model, [PORT])
    swarm.wait_until_ready()
    node = nodes.start_behind(shut.command, halves(model)[0], "--join", swarm.invite, *PORT)
    assert "forward its port" in node.line("no part: nobody can reach this node (no relay)")
    status = swarm.seen_from(open_host)
    (peer,) = (each["peer"] for each in status["peers"] if each["name"] == shut.name)
    assert status["ways"][peer] == "nobody (no relay)"
    assert status["idle"][f"{peer}/0"] == "nobody can reach it (no relay)"
    assert not any(line.startswith("plan:") for line in node.lines)
