"""Two swarms on one network, whose peers know each other: members, plans and answers never mix."""

from dataclasses import replace
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from swarm.invites import Invite
from tests.network.conftest import model_of
from tests.network.hosted_swarm import HostedSwarm
from tests.network.laboratory import Laboratory
from tests.whole.swarms import Nodes, Part, shard_bytes

pytestmark = pytest.mark.network

LAYERS = {"red": 2, "blue": 4}  # of each swarm's model


def half_of(model: Path) -> int:
    """Memory for half of the layers and one of the ends."""
    spec = read_spec(model, str(model))
    return shard_bytes(spec, spec.layers // 2, spec.kv_heads, spec.mlp_blocks, ends=1)


def test_two_swarms_on_the_same_hosts_that_share_a_bootstrap_peer_never_mix(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """Each host has a node of both; who joins either finds the founders of both in its invite."""
    network, hosts = lab.network("11.0.0"), [lab.host(name) for name in ("one", "two")]
    for at, host in enumerate(hosts):
        lab.attach(host, network, at + 1)
    models = {name: model_of(tmp_path / name / "model", layers) for name, layers in LAYERS.items()}
    founders = {
        name: nodes.start_behind(
            hosts[0].command, Part(f"{name}-1", half_of(model)), "--host", "--model", str(model)
        )
        for name, model in models.items()
    }
    invites = {name: Invite.parse(node.line("invite:")) for name, node in founders.items()}
    everybody = tuple(address for each in invites.values() for address in each.addresses)
    swarms = {}
    for name, model in models.items():
        invite = replace(invites[name], addresses=everybody).encode()
        part = Part(f"{name}-2", half_of(model))
        other = nodes.start_behind(hosts[1].command, part, "--join", invite)
        swarms[name] = HostedSwarm([founders[name], other], invite, model, tmp_path)
    for name, swarm in swarms.items():
        swarm.wait_until_ready()
        peers = swarm.seen_from(hosts[1])["peers"]
        assert {peer["name"] for peer in peers} == {f"{name}-1", f"{name}-2"}
        of_layers = {part.partition(";")[0].partition(" of ")[2] for part in swarm.parts()}
        assert of_layers == {f"{LAYERS[name]}, whole"}
        assert swarm.answer_on(hosts[1]) == swarm.expected()
