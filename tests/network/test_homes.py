"""Machines behind routers: a group within one home, and none between two homes."""

from pathlib import Path

import pytest

from tests.network.conftest import model_of
from tests.network.hosted_swarm import swarm_on
from tests.network.laboratory import Laboratory
from tests.network.test_two_hosts import group_ends, halves
from tests.whole.swarms import Nodes, Part

pytestmark = pytest.mark.network

TOO_LITTLE = 100_000  # bytes, for a part of its own


def test_a_group_over_two_machines_of_one_home_serves_a_layer_that_neither_can_hold(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model", layers=1)
    home = lab.home("home", lab.network("11.0.0"), 11)
    hosts = [lab.host(name) for name in ("one", "two")]
    ends = [lab.attach(host, home.network, at + 2) for at, host in enumerate(hosts)]
    swarm = swarm_on(hosts, halves(model), nodes, model)
    swarm.wait_until_ready()
    assert all("of 2" in part.partition("rank")[2] for part in swarm.parts())
    assert swarm.answer_on(hosts[1]) == swarm.expected()
    assert group_ends(swarm.nodes[0]) == {tuple(ends)}


def test_no_group_is_planned_between_homes_whose_machines_nobody_can_dial(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """Ranks need sockets between them, and a relay carries none; a public host is the founder."""
    model, outer = model_of(tmp_path / "model", layers=1), lab.network("11.0.0")
    hosts = [lab.host(name) for name in ("public", "one", "two")]
    lab.attach(hosts[0], outer, 1)
    for at, host in enumerate(hosts[1:]):
        lab.attach(host, lab.home(f"{host.name}-home", outer, 11 + at).network, 2)
    parts = [Part("public", TOO_LITTLE), *halves(model)]
    swarm = swarm_on(hosts, parts, nodes, model)
    for node in swarm.nodes[1:]:
        assert "joins through relay" in node.line("reach: not reachable from outside")
    for node in swarm.nodes:  # with the memory of both homes it would do, in one place
        said = node.line("waiting: The model fits only if machines of several homes")
        assert "nobody outside can dial" in said
    assert swarm.seen_from(hosts[0], "plan")["plan"]["pipelines"] == []
