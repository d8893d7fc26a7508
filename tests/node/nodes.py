"""A node in memory: its loops, on the board and the channel of a MemoryWorld."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.config import NodeConfig
from node.network.bootstrap import NodeNetwork
from node.node import Node
from node.served_model import ServedModel
from node.status_lines import StatusLines
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.invites import Invite
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity
from tests.node.memberships import SPEC, SWARM


def node_of(
    world: MemoryWorld,
    name: str,
    folder: Path,
    lines: list[str],
    *,
    swarm: str = SWARM,
    key: str = "secret",
) -> Node:
    """A node without devices, which says its lines into `lines`."""
    me = peer_named(name)
    invite = Invite((), swarm, "tiny", key)
    board, channel, identity = world.board(me), world.channel(me), Identity.throwaway()
    process: Any = SimpleNamespace(addresses=None, connected=None, given_up=asyncio.Event())
    keeper, joined = ManifestKeeper(channel, board, swarm), asyncio.Event()
    network = NodeNetwork(process, board, channel, invite, folder, (), identity, keeper, joined)
    status = StatusLines(lines.append, lambda _fraction: None, SPEC)
    node = Node(NodeConfig(founds=True), ServedModel("tiny", folder, SPEC), network, status)
    node._add_devices([])
    return node
