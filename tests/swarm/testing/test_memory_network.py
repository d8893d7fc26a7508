"""The twins in memory: they order, lose, delay and refuse as the real seams do."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from swarm.errors import (
    BadModel,
    Deadline,
    LocalProtocolError,
    NoRoom,
    PeerLost,
    PeerRefused,
    RemoteProtocolError,
)
from swarm.records import Capability, Lease, Manifest
from swarm.testing.clock import LoopClock, ManualClock, settle
from swarm.testing.memory_network import MemoryChannel, MemoryWorld, peer_named
from swarm.wire.messages import Fail, Message, Ping, Step

A, B, C = (peer_named(name) for name in "abc")


class Listener:
    """A channel with everything that came in at it."""

    def __init__(self, world: MemoryWorld, peer: str) -> None:
        self.channel = world.channel(peer)
        self.messages: list[tuple[str, Message]] = []
        self.losses: list[tuple[str, str]] = []
        self.channel.listen(
            lambda sender, message: self.messages.append((sender, message)),
            lambda lost, reason: self.losses.append((lost, reason)),
        )


class Scene:
    """Three peers and a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.world = MemoryWorld(self.clock)
        self.a, self.b, self.c = (Listener(self.world, peer) for peer in (A, B, C))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def echo(asker: str, payload: bytes) -> bytes:
    return payload


def test_messages_arrive_in_order() -> None:
    async def story() -> None:
        scene = Scene()
        for number in range(5):
            await scene.a.channel.send(B, Ping(number))
        await settle()
        assert scene.b.messages == [(A, Ping(number)) for number in range(5)]

    run(story())


def test_a_delayed_link_delivers_when_its_time_has_come_and_in_order() -> None:
    async def story() -> None:
        scene = Scene()
        scene.world.link(A, B).delay_seconds = 0.5
        await scene.a.channel.send(B, Ping(1))
        scene.world.link(A, B).delay_seconds = 0.1
        await scene.a.channel.send(B, Ping(2))
        await scene.clock.advance(0.4)
        assert scene.b.messages == []
        await scene.clock.advance(0.2)
        assert scene.b.messages == [(A, Ping(1)), (A, Ping(2))]
        assert scene.a.channel.round_trip_seconds(B) == pytest.approx(0.2)

    run(story())


def test_messages_that_come_before_listening_are_kept() -> None:
    async def story() -> None:
        scene, found = Scene(), []
        late = scene.world.channel(peer_named("late"))
        await scene.a.channel.send(late.peer, Ping(1))
        await settle()
        late.listen(lambda sender, message: found.append(message), lambda *loss: None)
        await settle()
        assert found == [Ping(1)]

    run(story())


def test_a_cut_link_is_lost_on_both_sides_at_once() -> None:
    async def story() -> None:
        scene = Scene()
        scene.world.link(A, B).delay_seconds = 0.1
        await scene.a.channel.send(B, Ping(1))
        scene.world.cut(A, B)
        await settle()
        assert scene.a.losses == [(B, "its stream ended")]
        assert scene.b.losses == [(A, "its stream ended")]
        assert scene.b.messages == []  # it was under way
        with pytest.raises(PeerLost):
            await scene.a.channel.send(B, Ping(2))
        scene.world.heal(A, B)
        await scene.a.channel.send(B, Ping(3))
        await scene.clock.advance(1)
        assert scene.b.messages == [(A, Ping(3))]

    run(story())


def test_a_link_that_nobody_used_is_cut_unnoticed() -> None:
    async def story() -> None:
        scene = Scene()
        scene.world.cut(A, B)
        await settle()
        assert scene.a.losses == []

    run(story())


def test_a_silent_link_is_noticed_after_three_beats() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.a.channel.send(B, Ping(1))
        await settle()
        scene.world.silence(A, B)
        await scene.a.channel.send(B, Ping(2))
        await scene.clock.advance(5)
        assert scene.a.losses == []
        await scene.clock.advance(2)
        assert scene.a.losses == [(B, "it has fallen silent")]
        assert scene.b.messages == [(A, Ping(1))]

    run(story())


def test_a_killed_peer_is_lost_to_those_who_knew_it_and_its_records_live_on() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.world.board(B).publish(Lease(1, 0.0))
        await scene.b.channel.send(A, Ping(1))
        await settle()
        scene.world.kill(B)
        await settle()
        assert scene.a.losses == [(B, "its stream ended")]
        assert scene.c.losses == []
        assert B in await scene.world.board(A).read(Lease)
        with pytest.raises(PeerLost):
            await scene.b.channel.send(A, Ping(2))

    run(story())


def test_a_closed_channel_tells_the_others_but_not_itself() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.a.channel.send(B, Ping(1))
        await scene.a.channel.close()
        await settle()
        assert scene.b.losses == [(A, "its stream ended")]
        assert scene.a.losses == []

    run(story())


def test_a_protocol_error_of_the_listener_is_answered_with_fail() -> None:
    async def story() -> None:
        scene = Scene()

        def refuse(sender: str, message: Message) -> None:
            raise RemoteProtocolError("not now")

        scene.b.channel.listen(refuse, lambda *loss: None)
        await scene.a.channel.send(B, Step("s", 3, b"k", 0, 0, 1, True, "i32", body=b"1234"))
        await settle()
        assert scene.a.messages == [(B, Fail("s", 3, "bad_frame", "not now"))]

    run(story())


def test_a_question_is_answered() -> None:
    async def story() -> None:
        scene = Scene()
        scene.b.channel.answer("echo", echo)
        assert await scene.a.channel.ask(B, "echo", b"hello") == b"hello"
        assert await scene.b.channel.ask(B, "echo", b"myself") == b"myself"

    run(story())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NoRoom("full"), "NoRoom: full"),
        (BadModel("which", "Ask."), "BadModel: which Ask."),
        (PeerRefused("later", retry_after_seconds=2.5), "PeerRefused: later"),
    ],
)
def test_an_error_of_the_handler_reaches_the_asker(error: Exception, cause: str) -> None:
    async def refuse(asker: str, payload: bytes) -> bytes:
        raise error

    async def story() -> None:
        scene = Scene()
        scene.b.channel.answer("refuse", refuse)
        with pytest.raises(PeerRefused, match=cause) as caught:
            await scene.a.channel.ask(B, "refuse", b"")
        assert caught.value.peer == B
        assert caught.value.retry_after_seconds == (2.5 if "later" in cause else 0.0)

    run(story())


def test_a_question_that_nobody_answers_is_refused() -> None:
    async def story() -> None:
        with pytest.raises(PeerRefused, match="unknown"):
            await Scene().a.channel.ask(B, "nothing", b"")

    run(story())


def test_too_large_a_question_is_our_error_and_too_large_an_answer_a_refusal() -> None:
    async def large(asker: str, payload: bytes) -> bytes:
        return bytes(2**20 + 1)

    async def story() -> None:
        scene = Scene()
        scene.b.channel.answer("large", large)
        with pytest.raises(LocalProtocolError):
            await scene.a.channel.ask(B, "large", bytes(2**20 + 1))
        with pytest.raises(PeerRefused, match="too_large"):
            await scene.a.channel.ask(B, "large", b"")

    run(story())


async def asked(channel: MemoryChannel, scene: Scene, seconds: float) -> None:
    question = asyncio.create_task(channel.ask(B, "wait", b"", timeout_seconds=2))
    await settle()
    if seconds:
        await scene.clock.advance(seconds)
    else:
        scene.world.kill(B)
    await question


@pytest.mark.parametrize(("seconds", "error"), [(2.1, Deadline), (0, PeerLost)])
def test_a_question_ends_with_its_deadline_or_its_peer(
    seconds: float, error: type[Exception]
) -> None:
    async def wait(asker: str, payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def story() -> None:
        scene = Scene()
        scene.b.channel.answer("wait", wait)
        with pytest.raises(error):
            await asked(scene.a.channel, scene, seconds)

    run(story())


def test_a_record_lives_as_long_as_its_kind_says() -> None:
    async def story() -> None:
        scene = Scene()
        board = scene.world.board(A)
        await board.publish(Lease(1, 0.0))
        await board.publish(Manifest("m", "d", "f32", 0.0), ttl_seconds=5)
        await scene.clock.advance(4.9)
        assert await scene.world.board(B).read(Manifest) == {A: Manifest("m", "d", "f32", 0.0)}
        await scene.clock.advance(1)
        assert await scene.world.board(B).read(Manifest) == {}
        await scene.clock.advance(8)
        assert await board.read(Lease) == {A: Lease(1, 0.0)}
        await scene.clock.advance(2)
        assert await board.read(Lease) == {}

    run(story())


def test_the_later_record_replaces_the_earlier_one() -> None:
    async def story() -> None:
        board = Scene().world.board(A)
        await board.publish(Lease(1, 0.0))
        await board.publish(Lease(2, 0.0), ttl_seconds=0.1)
        assert await board.read(Lease) == {A: Lease(2, 0.0)}

    run(story())


def test_a_record_that_would_not_travel_is_our_error() -> None:
    async def story() -> None:
        board = Scene().world.board(A)
        with pytest.raises(LocalProtocolError, match="malformed"):
            await board.publish(Lease(1, float("nan")))
        with pytest.raises(LocalProtocolError, match="bytes"):
            await board.publish(Capability("d" * 2100, [], [], "host", True, 0.0))

    run(story())


def test_a_world_may_run_in_real_time() -> None:
    async def story() -> None:
        world = MemoryWorld(LoopClock())
        sender, receiver = world.channel(A), Listener(world, B)
        world.link(A, B).delay_seconds = 0.01
        await sender.send(B, Ping(1))
        async with asyncio.timeout(5):
            while not receiver.messages:  # noqa: ASYNC110 (real time passes)
                await asyncio.sleep(0.002)

    run(story())
