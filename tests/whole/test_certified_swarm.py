"""A private swarm of real nodes: an invite for one machine, and a machine that is revoked."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from swarm.invites import Invite
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.swarms import NodeProcess, Nodes, Part, nodes_in, shard_bytes, swarm

pytestmark = pytest.mark.nodes

HALF = shard_bytes(SPEC, SPEC.layers // 2, *WHOLE, ends=1)
ALL = shard_bytes(SPEC, SPEC.layers, *WHOLE, ends=2)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes_in(tmp_path_factory.mktemp("certified")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def host(nodes: Nodes) -> NodeProcess:
    host = nodes.start(Part("host", ALL), "--host", "--key")
    host.line("ready:")
    return host


def said_at_the_end(node: NodeProcess) -> str:
    """What a node says that cannot go on."""
    node.process.wait(60)
    node._reader.join(5)
    return "\n".join(node.lines)


def peer_of(node: NodeProcess) -> str:
    status = swarm("status", "--json", state=node.state)
    assert status.returncode == 0, status.stderr
    peers: list[str] = [each["peer"] for each in json.loads(status.stdout)["peers"]]
    return next(peer for peer in peers if peer.endswith(node.peer_tail))


def test_an_invite_for_one_machine_lets_one_in_and_a_revoked_machine_stays_out(
    nodes: Nodes, host: NodeProcess
) -> None:
    standing = host.line("invite:")
    made = swarm("invite", "--once", state=host.state)
    assert made.returncode == 0, made.stderr
    once = made.stdout.strip()

    first = nodes.start(Part("first", HALF), "--join", once)
    first.line("node: ")
    first.line("swarm: ")
    asked = swarm("generate", "Once", "--max-tokens", "4", state=first.state)
    assert asked.returncode == 0, asked.stderr

    second = nodes.start(Part("second", HALF), "--join", once)
    assert "for one machine, and another one has used it" in said_at_the_end(second)

    peer = peer_of(first)
    refused = swarm("revoke", peer, state=first.state)
    assert "Only the founder's machine" in refused.stderr
    done = swarm("revoke", peer, state=host.state)
    assert done.returncode == 0, done.stderr
    assert "was revoked" in said_at_the_end(first)

    again = nodes.start(Part("first", HALF), "--join", once)  # with all that it has
    assert "was revoked" in said_at_the_end(again)
    other = nodes.start(Part("other", HALF), "--join", standing)  # as another machine
    assert "void: a machine was revoked after it was made" in said_at_the_end(other)

    fresh = swarm("invite", state=host.state).stdout.strip()
    third = nodes.start(Part("third", HALF), "--join", fresh)
    third.line("swarm: ")
    via = Invite.parse(third.remembered_invite()).addresses[:1]
    host.kill()
    late = nodes.start(
        Part("late", HALF), "--join", replace(Invite.parse(fresh), addresses=via).encode()
    )
    assert "Neither the founder nor a delegate of the swarm is up" in said_at_the_end(late)
