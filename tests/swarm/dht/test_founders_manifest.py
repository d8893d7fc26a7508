"""The founder's word outlives the founder: peers keep it signed, and nobody can make one up."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from swarm.dht import founders_manifest
from swarm.dht.founders_manifest import QUESTION, ManifestKeeper, SignedManifest
from swarm.errors import RemoteProtocolError
from swarm.records import Capability, Manifest
from swarm.testing.memory_network import MemoryWorld
from swarm.trust.identity import Identity, swarm_id

FOUNDER = Identity.throwaway()
SWARM = swarm_id("friends", FOUNDER.peer)
WORD = Manifest("/model", "d" * 64, "f32", 5.0, "", "i" * 64)
HERE = Capability("d" * 64, [], [], "host", reachable=True, since=1.0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def member(world: MemoryWorld, path: Path | None = None) -> tuple[Identity, ManifestKeeper]:
    """A node that keeps and hands on."""
    identity = Identity.throwaway()
    board = world.board(identity.peer)
    await board.publish(HERE)
    keeper = ManifestKeeper(world.channel(identity.peer), board, SWARM, path=path)
    keeper.hand_on()
    return identity, keeper


async def founded(world: MemoryWorld) -> ManifestKeeper:
    """The founder's node."""
    board = world.board(FOUNDER.peer)
    await board.publish(HERE)
    await board.publish(WORD)
    keeper = ManifestKeeper(world.channel(FOUNDER.peer), board, SWARM)
    keeper.hand_on()
    keeper.say(WORD, FOUNDER.sign)
    return keeper


def leave(world: MemoryWorld, peer: str) -> None:
    world.channels.pop(peer, None)
    for key in [key for key in world.records if key[1] == peer]:
        world.records.pop(key)


def test_peers_hand_on_the_founders_word_when_it_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        world = MemoryWorld()
        await founded(world)
        first, keeper = await member(world, tmp_path / "kept")
        assert await keeper.find() == WORD
        leave(world, FOUNDER.peer)
        assert await keeper.find() == WORD
        _, second = await member(world)
        assert await second.find() == WORD
        leave(world, first.peer)
        _, third = await member(world)
        assert await third.find() == WORD
        _, again = await member(MemoryWorld(), tmp_path / "kept")  # after a restart, all alone
        assert await again.find() == WORD

    run(story())


def test_the_boards_word_comes_first_and_a_new_one_is_kept() -> None:
    async def story() -> None:
        world = MemoryWorld()
        founder = await founded(world)
        _, keeper = await member(world)
        await keeper.find()
        later = replace(WORD, inventory="j" * 64, founded=9.0)
        await world.board(FOUNDER.peer).publish(later)
        founder.say(later, FOUNDER.sign)
        assert await keeper.find() == later
        leave(world, FOUNDER.peer)
        assert await keeper.find() == later

    run(story())


def test_nobody_knows_and_nothing_is_found_in_time() -> None:
    async def story() -> None:
        world = MemoryWorld()
        _, keeper = await member(world)
        await member(world)
        assert await keeper.find() is None

    run(story())


STRANGER = Identity.throwaway()
HONEST = SignedManifest.make(FOUNDER.peer, SWARM, WORD, FOUNDER.sign)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2, 3]),
        bytes(1 << 20),
        SignedManifest.make(STRANGER.peer, SWARM, WORD, STRANGER.sign).to_bytes(),
        SignedManifest.make(FOUNDER.peer, SWARM, WORD, STRANGER.sign).to_bytes(),
        SignedManifest.make(FOUNDER.peer, "other-abc", WORD, FOUNDER.sign).to_bytes(),
        replace(HONEST, content=HONEST.content[:-1] + b"x").to_bytes(),
        replace(HONEST, founder="\ud800".encode("utf-8", "replace").decode()).to_bytes(),
    ],
)
def test_what_the_founder_did_not_sign_is_not_believed(answer: bytes) -> None:
    async def story() -> None:
        world = MemoryWorld()
        liar, _ = await member(world)

        async def lie(_peer: str, _payload: bytes) -> bytes:
            return answer

        world.channels[liar.peer].answer(QUESTION, lie)
        _, keeper = await member(world)
        assert await keeper.find() is None
        with pytest.raises(RemoteProtocolError):
            SignedManifest.of_bytes(answer).manifest_of(SWARM)

    run(story())


def test_many_silent_peers_do_not_hide_one_that_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world = MemoryWorld()
        await founded(world)
        for _ in range(3 * founders_manifest.AT_ONCE):
            silent = Identity.throwaway().peer
            await world.board(silent).publish(HERE)
        _, knows = await member(world)
        await knows.find()
        leave(world, FOUNDER.peer)
        _, keeper = await member(world)
        assert await keeper.find() == WORD

    run(story())


def test_who_stays_keeps_the_newest_word_to_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody asking: the founder may be gone when somebody does."""
    monkeypatch.setattr(founders_manifest, "KEEP_SECONDS", 0.01)

    async def story() -> None:
        world = MemoryWorld()
        founder = await founded(world)
        _, keeper = await member(world)
        keeping = asyncio.create_task(keeper.keep())
        for said in (WORD, replace(WORD, founded=6.0, inventory="j" * 64)):
            founder.say(said, FOUNDER.sign)
            await world.board(FOUNDER.peer).publish(said)
            async with asyncio.timeout(5):
                while keeper._manifest != said:  # noqa: ASYNC110 (nothing announces it)
                    await asyncio.sleep(0.01)
        keeping.cancel()

    run(story())


def test_who_comes_while_only_the_founders_record_lives_keeps_the_word_of_others() -> None:
    async def story() -> None:
        world = MemoryWorld()
        await founded(world)
        first, keeper = await member(world)
        assert await keeper.find() == WORD
        world.channels.pop(FOUNDER.peer)  # it is gone, and its record not yet
        _, second = await member(world)
        assert await second.find() == WORD
        leave(world, FOUNDER.peer)
        leave(world, first.peer)
        _, third = await member(world)
        assert await third.find() == WORD

    run(story())
