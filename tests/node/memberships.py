"""Peers of a small swarm in memory: their records, and what a node makes of them."""

import time
from collections.abc import Sequence

from node.control.membership import Membership
from swarm.hardware import Device, Link
from swarm.model_spec import BYTES_PER_VALUE, ModelSpec
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.certificates import PlannerTrust

SWARM = "swarm-test"
MEMBERS = PlannerTrust(SWARM, is_private=True)
SPEC = ModelSpec(
    name="tiny",
    digest="d" * 64,
    architecture="llama",
    layers=8,
    hidden=128,
    heads=8,
    kv_heads=8,
    head_dim=16,
    ffn=1024,
    vocab=512,
    context=512,
    attention_parameters=4 * 128 * 128,
    mlp_parameters=3 * 128 * 1024,
    tied=True,
)
LAYER_BYTES = SPEC.layer_parameters * BYTES_PER_VALUE
WHOLE = 16 * LAYER_BYTES  # more than enough for the model and its sessions


def capability_of(
    *memory: float,
    speed: float = 1e9,
    host: str = "host",
    age_seconds: float = 100.0,
    links: Sequence[Link] = (),
    model: str = SPEC.digest,
) -> Capability:
    """A peer with a device for each memory size."""
    devices = [
        Device(index, "cpu", "cpu", int(size), speed, speed * 4)
        for index, size in enumerate(memory or (WHOLE,))
    ]
    since = time.time() - age_seconds
    return Capability(model, devices, list(links), host, True, since)


def membership_of(world: MemoryWorld, name: str, trust: PlannerTrust = MEMBERS) -> Membership:
    """The view of a node that has joined, in a private swarm unless said otherwise."""
    peer = peer_named(name)
    return Membership(SWARM, SPEC.digest, world.board(peer), world.channel(peer), trust)


async def look(membership: Membership, *, everybody: bool = False) -> None:
    """Read the board and ask whoever is due, as a node does."""
    await membership.refresh()
    await membership.ask_whether_alive(membership.due(everybody=everybody))
