"""Swarms of real processes, shared by the tests of a file because every node costs seconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import client
from client.event_loop_thread import EventLoopThread
from swarm.checkpoint.folder import find_model, read_spec
from swarm.model_spec import BUILT_IN
from tests.whole.swarms import NodeProcess, Nodes, Part, delegates_invite, nodes_in, shard_bytes

SPEC = read_spec(find_model(BUILT_IN), BUILT_IN)
WHOLE = (SPEC.kv_heads, SPEC.mlp_blocks)
UNEVEN = (  # together they hold the model in one way: 2 layers, 2 layers 5 to 3, 4 layers
    Part("large", shard_bytes(SPEC, 4, *WHOLE, ends=1)),
    Part("medium", shard_bytes(SPEC, 2, *WHOLE, ends=1), slowdown=1.5),
    Part("five", shard_bytes(SPEC, 2, 5, 5)),
    Part("three", shard_bytes(SPEC, 2, 3, 3), slowdown=2.0),
)
SPARE = Part("spare", shard_bytes(SPEC, 8, *WHOLE, ends=2))


@dataclass
class Swarm:
    """A running swarm of uneven nodes, and somebody who asks it."""

    nodes: Nodes
    invite: str
    loop_thread: EventLoopThread
    client: client.Client

    def node_of(self, peer: str) -> NodeProcess:
        """The process behind a peer id."""
        return next(node for node in self.nodes.started if peer.endswith(node.peer_tail))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """As many threads as there are cores already belong to the tests beside this one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients in this process keep certificates and addresses, but not in anybody's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def loop_thread() -> Iterator[EventLoopThread]:
    with EventLoopThread() as loop_thread:
        yield loop_thread


@pytest.fixture(scope="module")
def swarm(
    tmp_path_factory: pytest.TempPathFactory, loop_thread: EventLoopThread
) -> Iterator[Swarm]:
    """Four nodes that serve swarm-tiny in three stages, the middle one over an uneven pair."""
    folder: Path = tmp_path_factory.mktemp("swarm")
    with nodes_in(folder) as nodes:
        key = "lantern-harbour-quiet"  # private, so that any node may plan when the founder is gone
        host = nodes.start(UNEVEN[0], "--host", "--key", key)
        invite = host.line("invite:")
        admitting = delegates_invite(host)  # so that others can join when the founder is gone
        others = [nodes.start(part, "--join", admitting) for part in UNEVEN[1:]]
        for node in (host, *others):
            node.line("ready:")
        with loop_thread.hold(client.Client(invite)) as asking:
            yield Swarm(nodes, invite, loop_thread, asking)
