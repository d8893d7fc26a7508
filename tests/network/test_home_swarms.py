"""Whole nodes behind routers, and what a person on some host gets and sees of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from swarm.hardware import DIRECT, RELAYED
from swarm.model_spec import BYTES_PER_VALUE
from swarm.p2p.link_kinds import why_relayed
from tests.network.conftest import model_of
from tests.network.hosted_swarm import HostedSwarm, swarm_on
from tests.network.hosts import Host, Network
from tests.network.laboratory import Laboratory
from tests.whole.reference_model import ids_of
from tests.whole.swarms import Nodes, Part, shard_bytes

pytestmark = [pytest.mark.network, pytest.mark.nodes, pytest.mark.slow]

PORT = ("--port", "4001")
LONG_TEXT, MANY = "Once upon a time " * 40, 160
FIRST_CIRCUIT_BYTES = 1 << 17  # that a relay lets pass before it knows itself to be public
FULL_ROWS = ("--activations", "full")  # hidden rows as they are, so that their bytes are known
HALVES = ("one", "two")
BETWEEN_HALVES = frozenset(HALVES)


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
    assert len(ids_of(LONG_TEXT, model)) * row_bytes(model) > FIRST_CIRCUIT_BYTES
    asking = swarm.ask_from(public, MANY, LONG_TEXT)
    assert asking.ids() == swarm.expected(MANY, LONG_TEXT)
    links = swarm.links_from(public)
    assert links[BETWEEN_HALVES]["kind"] == RELAYED
    assert links[BETWEEN_HALVES]["why"] == why_relayed(public_hosts=1)
    assert {links[frozenset(("founder", name))]["kind"] for name in HALVES} == {DIRECT}
