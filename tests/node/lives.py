"""A node's life in memory: its loops, on the board and the channel of a MemoryWorld."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.bootstrap import Links, Served
from node.config import NodeConfig
from node.node import Life
from node.status_lines import Story
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.invites import Invite
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity
from tests.node.neighbours import SPEC, SWARM


def life_of(
    world: MemoryWorld,
    name: str,
    folder: Path,
    lines: list[str],
    *,
    swarm: str = SWARM,
    key: str = "secret",
) -> Life:
    """The life of a node without devices, which says its lines into `lines`."""
    me = peer_named(name)
    invite = Invite((), swarm, "tiny", key)
    board, channel, identity = world.board(me), world.channel(me), Identity.throwaway()
    process: Any = SimpleNamespace(addresses=None, connected=None, ended=asyncio.Event())
    manifests = ManifestKeeper(channel, board, swarm)
    links = Links(process, board, channel, invite, folder, (), identity, manifests)
    story = Story(lines.append, lambda _fraction: None, SPEC)
    life = Life(NodeConfig(founds=True), Served("tiny", folder, SPEC), links, story)
    life._take_in([])
    return life
