"""Machines of one home: a group at their private addresses, behind a router."""

from pathlib import Path

import pytest

from tests.network.conftest import model_of
from tests.network.hosted_swarm import swarm_on
from tests.network.laboratory import Laboratory
from tests.network.test_two_hosts import group_ends, halves
from tests.whole.swarms import Nodes

pytestmark = pytest.mark.network


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
