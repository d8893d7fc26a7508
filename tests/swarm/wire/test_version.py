"""Neighbouring versions of the protocol work together; anything else is told to update."""

import asyncio
from dataclasses import replace

import pytest

from swarm.errors import BadInvite
from swarm.invites import Invite
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.wire.version import PROTOCOL_VERSION, mismatch, works_with
from tests.node.memberships import capability_of, look, membership_of

NEAR = (PROTOCOL_VERSION - 1, PROTOCOL_VERSION, PROTOCOL_VERSION + 1)
FAR = (PROTOCOL_VERSION - 2, PROTOCOL_VERSION + 2, 10**9)


def test_the_same_and_neighbouring_versions_work_together() -> None:
    assert all(works_with(version) and not mismatch(version) for version in NEAR)
    assert not any(works_with(version) for version in FAR)


def test_whoever_is_older_is_told_to_update() -> None:
    assert mismatch(PROTOCOL_VERSION + 2).endswith("update this program.")
    assert mismatch(PROTOCOL_VERSION - 2).endswith("update the other side.")


def test_an_invite_says_which_version_its_swarm_speaks() -> None:
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_named('a')}"
    invite = Invite((address,), "tiny-abc", "swarm-tiny")
    assert Invite.parse(invite.encode()) == invite
    for version in NEAR:
        assert Invite.parse(replace(invite, version=version).encode()).version == version
    for version in FAR[1:]:
        with pytest.raises(BadInvite, match="update"):
            Invite.parse(replace(invite, version=version).encode())


def test_a_peer_of_a_version_too_far_off_is_left_out_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        world = MemoryWorld()
        view = membership_of(world, "me")
        for name, version in (("near", NEAR[0]), ("far", FAR[1])):
            membership_of(world, name)
            record = replace(capability_of(), protocol=version)
            await world.board(peer_named(name)).publish(record)
        for _ in range(3):
            await look(view)
        assert view.capabilities.keys() == {peer_named("near")}

    asyncio.run(story())
    assert caplog.text.count("is left out") == 1
