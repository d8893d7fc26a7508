"""LibP2PChannel on real daemons: order, questions, caps, and every way to lose a peer."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from itertools import count, islice

import pytest

from swarm.errors import (
    Deadline,
    LocalProtocolError,
    NoRoom,
    PeerLost,
    PeerRefused,
    RemoteProtocolError,
)
from swarm.p2p import libp2p_channel
from swarm.p2p.channel import ANSWER_CAP
from swarm.p2p.frame_stream import FrameStream, frame_of
from swarm.p2p.libp2p_channel import BAD_FRAMES_CAP, UNPROVED_OF_A_PEER
from swarm.p2p.rpc import OPEN_CALLS
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import Identity
from swarm.trust.introduction import Introductions, introduction_of
from swarm.trust.network_clock import CLOCK
from swarm.trust.peer_lists import PeerLists
from swarm.wire.framing import PREFIX
from swarm.wire.messages import Fail, Message, Ping, Step, Token
from tests.swarm.conftest import PING_SECONDS, Eventually, Peer, Swarm

RawStream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
NO_BEAT_SECONDS = 3600.0  # for peers that nobody gives up while they are silent


def step(position: int, body: bytes = b"1234") -> Step:
    return Step("session", 1, b"key", 0, position, 1, True, "i32", body=body)


@pytest.fixture(scope="module")
def host(swarm: Swarm) -> Peer:
    return swarm.run(swarm.peer())


@pytest.fixture(scope="module")
def other(swarm: Swarm, host: Peer) -> Peer:
    return swarm.run(swarm.peer())


@pytest.fixture(scope="module")
def client(swarm: Swarm, host: Peer) -> Peer:
    """It does not listen and knows only the host's address."""
    return swarm.run(swarm.peer(client=True))


@pytest.fixture(scope="module")
def rogue(swarm: Swarm, host: Peer) -> Peer:
    """Its channel is for listening; the tests speak for it over raw streams, which never ping."""
    return swarm.run(swarm.peer(ping_seconds=NO_BEAT_SECONDS))


@pytest.fixture(scope="module")
def victim(swarm: Swarm, host: Peer) -> Peer:
    """It bears the silence of raw streams, however long a busy machine makes it."""
    return swarm.run(swarm.peer(ping_seconds=NO_BEAT_SECONDS))


async def raw_stream(rogue: Peer, victim: Peer, proof: bytes | None = None) -> FrameStream:
    protocol = rogue.channel._frames
    reader, writer = await rogue.daemon.open_stream(victim.id, protocol)
    writer.write(rogue.channel._proof(rogue.id, victim.id) if proof is None else proof)
    return FrameStream(reader, writer)


async def ended(stream: FrameStream) -> bool:
    """Whether the other side ends the stream, whatever else it says before."""
    try:
        async with asyncio.timeout(10):
            await stream.hear(lambda header, body: None)
    except (EOFError, ConnectionError):
        return True
    finally:
        stream.abort()
    return False


def test_a_client_reaches_a_peer_that_it_has_never_met(
    swarm: Swarm, client: Peer, other: Peer
) -> None:
    async def story() -> None:
        await client.channel.send(other.id, step(1))
        assert await other.message() == (client.id, step(1))

    swarm.run(story())


def test_a_peer_answers_a_client_that_does_not_listen(
    swarm: Swarm, client: Peer, other: Peer
) -> None:
    async def story() -> None:
        token = Token("session", 1, b"key", 0, [5])
        await other.channel.send(client.id, token)
        assert await client.message() == (other.id, token)

    swarm.run(story())


def test_frames_of_many_senders_arrive_whole_and_in_order(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    sizes = [0, 1, 2**14, 3 * 2**20, 2**16, 2**16 + 1, 7] * 5
    sent = [step(at, bytes([at]) * size) for at, size in enumerate(sizes)]

    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            for message in sent:
                group.create_task(host.channel.send(other.id, message))
        found = [await other.message() for _ in sent]
        assert found == [(host.id, message) for message in sent]

    swarm.run(story())


def test_an_open_way_takes_messages_at_once_and_in_order(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        assert not host.channel.send_now("a peer never met", step(0))
        await host.channel.send(other.id, step(0))
        waiting = asyncio.create_task(host.channel.send(other.id, step(1)))
        await asyncio.sleep(0)
        await waiting
        sent = [host.channel.send_now(other.id, step(at)) for at in range(2, 6)]
        assert sent == [True] * 4
        assert [await other.message() for _ in range(6)] == [(host.id, step(n)) for n in range(6)]
        full = [host.channel.send_now(other.id, step(at, bytes(2**20))) for at in range(40)]
        assert not all(full)
        for at in (at for at, taken in enumerate(full) if taken):
            assert (await other.message())[1] == step(at, bytes(2**20))

    swarm.run(story())


def test_a_peer_may_send_to_itself(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        await host.channel.send(host.id, step(3))
        assert await host.message() == (host.id, step(3))

    swarm.run(story())


def test_the_round_trip_is_measured(swarm: Swarm, host: Peer, other: Peer) -> None:
    async def story() -> None:
        await host.channel.send(other.id, step(1))
        await other.message()
        async with asyncio.timeout(10):
            while host.channel.round_trip_seconds(other.id) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert 0 < (host.channel.round_trip_seconds(other.id) or 0) < 1
        assert host.channel.round_trip_seconds(peer_named("nobody")) is None

    swarm.run(story())


def test_idle_streams_stay_alive(swarm: Swarm, host: Peer, other: Peer) -> None:
    async def story() -> None:
        await host.channel.send(other.id, step(1))
        await other.message()
        await asyncio.sleep(6 * PING_SECONDS)
        assert other.losses.empty()
        assert host.losses.empty()

    swarm.run(story())


@pytest.mark.parametrize("peer", [peer_named("nobody"), "nonsense", ""])
def test_a_peer_that_does_not_exist_is_lost(swarm: Swarm, host: Peer, peer: str) -> None:
    async def story() -> None:
        with pytest.raises(PeerLost):
            await host.channel.send(peer, step(1))
        with pytest.raises(PeerLost):
            await host.channel.ask(peer, "echo", b"")

    swarm.run(story())


def test_a_peer_of_another_swarm_is_refused(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        foreign = await swarm.peer(swarm="another-swarm")
        with pytest.raises(PeerRefused, match="does not serve this swarm"):
            await host.channel.send(foreign.id, step(1))

    swarm.run(story())


def test_a_stranger_to_a_private_swarm_is_not_heard(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        member, friend = await swarm.peer(key="secret"), await swarm.peer(key="secret")
        member.channel.answer("echo", echo)
        await friend.channel.send(member.id, step(1))
        assert await member.message() == (friend.id, step(1))
        assert await friend.channel.ask(member.id, "echo", b"me") == b"me"
        with pytest.raises(PeerRefused, match="does not serve this swarm"):
            await host.channel.ask(member.id, "echo", b"me")
        thief = await swarm.peer(key="guess")  # it has seen the names of the streams
        thief.channel._frames = member.channel._frames
        thief.channel._rpc.protocol = member.channel._rpc.protocol
        with pytest.raises(PeerRefused, match="stranger"):
            await thief.channel.ask(member.id, "echo", b"me")
        await thief.channel.send(member.id, step(2))
        assert await thief.loss() == (member.id, "its stream ended")
        assert member.messages.empty()

    swarm.run(story())


# ---------------------------------------------------------------- questions


async def echo(asker: str, payload: bytes) -> bytes:
    return payload


async def large(asker: str, payload: bytes) -> bytes:
    return bytes(ANSWER_CAP + 1)


async def full(asker: str, payload: bytes) -> bytes:
    raise NoRoom("The cache is full.", "Try later.")


async def never(asker: str, payload: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


def test_a_question_may_fill_a_mebibyte_both_ways(swarm: Swarm, host: Peer, other: Peer) -> None:
    async def story() -> None:
        other.channel.answer("echo", echo)
        for payload in (b"", b"small", bytes(ANSWER_CAP)):
            assert await host.channel.ask(other.id, "echo", payload) == payload
        assert await other.channel.ask(other.id, "echo", b"myself") == b"myself"
        with pytest.raises(LocalProtocolError):
            await host.channel.ask(other.id, "echo", bytes(ANSWER_CAP + 1))

    swarm.run(story())


def test_refusals_reach_the_asker_with_their_cause(swarm: Swarm, host: Peer, other: Peer) -> None:
    async def story() -> None:
        other.channel.answer("full", full)
        other.channel.answer("large", large)
        for name, cause in (
            ("full", "NoRoom: The cache"),
            ("large", "too_large"),
            ("x", "unknown"),
        ):
            with pytest.raises(PeerRefused, match=cause):
                await host.channel.ask(other.id, name, b"")

    swarm.run(story())


def test_a_question_without_an_answer_ends_with_its_deadline(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        other.channel.answer("never", never)
        start = time.monotonic()
        with pytest.raises(Deadline):
            await host.channel.ask(other.id, "never", b"", timeout_seconds=0.3)
        assert time.monotonic() - start < 3

    swarm.run(story())


def test_too_many_questions_at_once_are_refused_without_waiting(
    swarm: Swarm, host: Peer, rogue: Peer
) -> None:
    async def story() -> None:
        host.channel.answer("never", never)
        asked = [
            asyncio.create_task(rogue.channel.ask(host.id, "never", bytes(2**18)))
            for _ in range(OPEN_CALLS + 4)
        ]
        done, waiting = await asyncio.wait(asked, timeout=2)
        refusals = [task.exception() for task in done]
        assert all(isinstance(error, PeerRefused) for error in refusals)
        assert len(refusals) == 4
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    swarm.run(story())


# ---------------------------------------------------------------- bad frames


def test_a_bad_frame_is_answered_with_fail_and_the_stream_goes_on(
    swarm: Swarm, victim: Peer, rogue: Peer
) -> None:
    async def story() -> None:
        stream = await raw_stream(rogue, victim)
        good = victim.channel._codec.encode(step(8))
        header = bytes(good[0])[PREFIX.size :].replace(b"position", b"pisotion")
        await stream.write(frame_of(header, b"1234"))
        await stream.write(good)
        assert await victim.message() == (rogue.id, step(8))
        sender, fail = await rogue.message()
        assert isinstance(fail, Fail)
        assert (sender, fail.code) == (victim.id, "bad_frame")
        assert (fail.session, fail.epoch) == ("session", 1)
        assert "pisotion" in fail.reason
        stream.abort()
        assert (await victim.loss())[0] == rogue.id

    swarm.run(story())


def test_a_listener_that_refuses_a_message_answers_it_with_fail(
    swarm: Swarm, rogue: Peer, other: Peer
) -> None:
    def refuse(sender: str, message: Message) -> None:
        raise RemoteProtocolError("out of order")

    async def story() -> None:
        strict = await swarm.peer()
        strict.channel.listen(refuse, lambda *loss: None)
        await other.channel.send(strict.id, step(1))
        _, fail = await other.message()
        assert fail == Fail("session", 1, "bad_frame", "out of order")

    swarm.run(story())


def test_a_frame_above_the_caps_ends_the_stream(swarm: Swarm, victim: Peer, rogue: Peer) -> None:
    async def story() -> None:
        stream = await raw_stream(rogue, victim)
        await stream.write([PREFIX.pack(2**20, 2**40)])
        assert await ended(stream)
        lost, reason = await victim.loss()
        assert lost == rogue.id
        assert "caps" in reason

    swarm.run(story())


def test_a_stream_of_bad_frames_ends(swarm: Swarm, victim: Peer, rogue: Peer) -> None:
    async def story() -> None:
        stream = await raw_stream(rogue, victim)
        for _ in range(BAD_FRAMES_CAP + 1):
            await stream.write(frame_of(b"nonsense"))
        assert await ended(stream)
        assert await victim.loss() == (rogue.id, "It sent too many bad frames.")

    swarm.run(story())


def test_a_second_stream_of_a_peer_replaces_the_first(
    swarm: Swarm, victim: Peer, rogue: Peer
) -> None:
    async def story() -> None:
        first = await raw_stream(rogue, victim)
        await first.write(victim.channel._codec.encode(step(1)))
        await victim.message()
        second = await raw_stream(rogue, victim)
        assert await victim.loss() == (rogue.id, "it opened a new stream")
        assert await ended(first)
        await second.write(victim.channel._codec.encode(step(2)))
        assert await victim.message() == (rogue.id, step(2))
        second.abort()
        await victim.loss()

    swarm.run(story())


# ---------------------------------------------------------------- leaving a relay


async def relayed_stream(one: Peer, two: Peer) -> FrameStream:
    """The stream between two peers, as if it went through a relay."""
    await one.channel.send(two.id, step(0))
    await two.message()
    stream = one.channel._connections[two.id].stream
    assert stream is not None
    stream.is_relayed = True
    return stream


async def send_until(sender: Peer, receiver: Peer, done: Callable[[], bool]) -> int:
    """Send numbered frames, of many sizes, until something holds, and some more; how many."""
    for at in count():
        await sender.channel.send(receiver.id, step(at, bytes(at % 7 * 3000)))
        await asyncio.sleep(0)
        if done() or at == 20_000:
            for more in range(1, 50):
                assert sender.channel.send_now(receiver.id, step(at + more))
            return at + 50
    raise AssertionError("unreachable")


def test_frames_leave_a_relay_in_order_and_without_a_loss(swarm: Swarm) -> None:
    async def story() -> None:
        one, two = await swarm.peer(), await swarm.peer()
        before = await relayed_stream(one, two)
        connection = one.channel._connections[two.id]

        def has_left() -> bool:
            one.channel.leave_relay(two.id)  # told again and again
            return connection.stream is not before

        sent = await send_until(one, two, has_left)
        assert connection.stream is not before
        await one.channel.confirm(two.id, timeout_seconds=10.0)
        heard = [(await two.message())[1] for _ in range(sent)]
        assert [message.position for message in heard if isinstance(message, Step)] == [
            *range(sent)
        ]
        assert one.losses.empty()
        assert two.losses.empty()
        async with asyncio.timeout(10):
            await before.wait_for_end(10)  # by the other side

    swarm.run(story())


def test_a_peer_that_takes_no_following_stream_keeps_its_own(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        one, older = await swarm.peer(), await swarm.peer()
        before = await relayed_stream(one, older)
        connection = one.channel._connections[older.id]
        monkeypatch.setattr(one.channel, "_followers", "/unknown")
        one.channel.leave_relay(older.id)
        await send_until(one, older, lambda: not connection.moves)
        assert connection.stream is before
        assert one.losses.empty()
        assert older.losses.empty()

    swarm.run(story())


def test_streams_are_quiet_when_no_session_can_be_under_way(
    swarm: Swarm, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        one, two = await swarm.peer(), await swarm.peer()
        assert one.channel.is_quiet(two.id)  # no stream
        await one.channel.send(two.id, step(1))
        await two.message()
        assert not one.channel.is_quiet(two.id)
        assert not two.channel.is_quiet(one.id)
        monkeypatch.setattr(libp2p_channel, "QUIET_SECONDS", 3 * PING_SECONDS)

        async def are_quiet() -> bool:
            return one.channel.is_quiet(two.id) and two.channel.is_quiet(one.id)

        await eventually(are_quiet)
        assert one.channel.send_now(two.id, step(2))  # beats have not closed the stream
        await two.message()

    swarm.run(story())


async def following_stream(rogue: Peer, victim: Peer, frames: int) -> FrameStream:
    reader, writer = await rogue.daemon.open_stream(victim.id, rogue.channel._followers)
    writer.write(rogue.channel._proof(rogue.id, victim.id) + frames.to_bytes(8))
    return FrameStream(reader, writer)


def test_a_stream_that_follows_none_is_ended(swarm: Swarm, victim: Peer, rogue: Peer) -> None:
    async def story() -> None:
        assert await ended(await following_stream(rogue, victim, 0))
        assert victim.losses.empty()

    swarm.run(story())


def test_a_following_stream_is_not_heard_before_its_time(
    swarm: Swarm, victim: Peer, rogue: Peer, eventually: Eventually
) -> None:
    async def story() -> None:
        first = await raw_stream(rogue, victim)
        await first.write(victim.channel._codec.encode(step(1)))
        assert await victim.message() == (rogue.id, step(1))
        second = await following_stream(rogue, victim, 3)
        await second.write(victim.channel._codec.encode(step(4)))
        for at in (2, 3):
            await first.write(victim.channel._codec.encode(step(at)))
        heard = [(await victim.message())[1] for _ in range(3)]
        assert heard == [step(at) for at in (2, 3, 4)]
        assert await ended(first)
        third = await following_stream(rogue, victim, 2)  # of which one will never come

        async def is_waiting() -> bool:
            return rogue.id in victim.channel._followed

        await eventually(is_waiting)
        assert await ended(await following_stream(rogue, victim, 1))  # one waits, no more
        second.abort()
        assert (await victim.loss())[0] == rogue.id
        assert await ended(third)

    swarm.run(story())


# ---------------------------------------------------------------- losses


def test_a_closed_channel_is_seen_by_the_other_side_only(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        leaving = await swarm.peer()
        await leaving.channel.send(host.id, step(1))
        await host.message()
        await leaving.channel.close()
        assert await host.loss() == (leaving.id, "its stream ended")
        assert leaving.losses.empty()
        with pytest.raises(PeerLost, match="closed"):
            await leaving.channel.send(host.id, step(2))

    swarm.run(story())


def test_a_killed_peer_is_lost_on_both_ends_at_once(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        dying = await swarm.peer()
        dying.channel.answer("never", never)
        await host.channel.send(dying.id, step(1))
        await dying.message()
        question = asyncio.create_task(host.channel.ask(dying.id, "never", b""))
        await asyncio.sleep(0.1)
        start = time.monotonic()
        dying.daemon.p2p._child.kill()
        assert await host.loss() == (dying.id, "its stream ended")
        assert await dying.loss() == (host.id, "its stream ended")
        with pytest.raises(PeerLost):
            await question
        await asyncio.wait_for(dying.daemon.ended.wait(), 10)
        assert time.monotonic() - start < 3
        with pytest.raises(PeerLost):
            await host.channel.send(dying.id, step(2))
        with pytest.raises(PeerLost, match="own p2pd"):
            await dying.channel.send(host.id, step(2))

    swarm.run(story())


def test_a_black_holed_peer_is_lost_after_three_beats_and_found_again(
    swarm: Swarm, host: Peer, eventually: Eventually
) -> None:
    async def story() -> None:
        holed = await swarm.peer()
        await host.channel.send(holed.id, step(1))
        await holed.message()
        try:
            await stop_daemon(holed)
            with pytest.raises(Deadline):
                await host.channel.ask(holed.id, "echo", b"", timeout_seconds=0.1)
            assert await host.loss() == (holed.id, "it has fallen silent")
            assert await holed.loss() == (host.id, "it has fallen silent")
            await eventually(lambda: is_disconnected(host, holed))
        finally:
            holed.daemon.p2p._child.send_signal(signal.SIGCONT)
        await holed.channel.send(host.id, step(2), timeout_seconds=15)  # after its disconnect
        assert await host.message() == (holed.id, step(2))
        await host.channel.send(holed.id, step(3), timeout_seconds=15)
        assert await holed.message() == (host.id, step(3))
        assert host.losses.empty()
        assert holed.losses.empty()

    swarm.run(story())


def test_silent_streams_of_a_stranger_do_not_lock_newcomers_out(
    swarm: Swarm, host: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One identity without the key, 80 streams, against a node of a private swarm."""
    monkeypatch.setattr("swarm.p2p.libp2p_channel.HELLO_SECONDS", 3600.0)

    async def story() -> None:
        node, friend = await swarm.peer(key="secret"), await swarm.peer(key="secret")
        stranger = await swarm.peer(key="guess")
        protocol = node.channel._frames
        opened = await asyncio.gather(
            *(stranger.daemon.open_stream(node.id, protocol) for _ in range(80))
        )
        ends = [asyncio.create_task(reader.read()) for reader, _ in opened]
        for end in islice(asyncio.as_completed(ends), 80 - UNPROVED_OF_A_PEER):
            await end
        assert len(node.channel._unproved) == UNPROVED_OF_A_PEER
        await friend.channel.send(node.id, step(1))
        assert await node.message() == (friend.id, step(1))
        assert list(node.channel._incoming) == [friend.id]
        for _, writer in opened:
            writer.close()
        await asyncio.wait(ends)

    swarm.run(story())


def test_a_quiet_stream_gives_way_when_all_places_are_taken(
    swarm: Swarm, host: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        node = await swarm.peer(ping_seconds=NO_BEAT_SECONDS)
        quiet, busy, newcomer = [await swarm.peer() for _ in range(3)]
        for peer in (quiet, busy):
            await peer.channel.send(node.id, step(1))
            await node.message()
        monkeypatch.setattr("swarm.p2p.libp2p_channel.STREAM_CAP", 2)
        with pytest.raises(RemoteProtocolError, match="no room"):
            node.channel._make_room()
        node.channel._incoming[quiet.id].quiet_beats = 1  # of an hour each
        await newcomer.channel.send(node.id, step(2))
        assert await node.message() == (newcomer.id, step(2))
        assert set(node.channel._incoming) == {busy.id, newcomer.id}
        assert await node.loss() == (quiet.id, "others need its place")

    swarm.run(story())


async def stop_daemon(peer: Peer) -> None:
    """Stop all threads of a p2pd: on a busy machine they run on for a moment."""
    pid = peer.daemon.p2p._child.pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitpid, pid, os.WUNTRACED)


async def is_disconnected(peer: Peer, other: Peer) -> bool:
    return other.id not in await peer.daemon.connected()


def test_a_lost_peer_is_called_only_after_the_own_disconnect(
    swarm: Swarm, host: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disconnect is held back here: a daemon that stood still would hold back all the rest."""
    wake = asyncio.Event()
    opened: list[str] = []
    disconnect, open_stream = host.daemon.disconnect, host.daemon.open_known_stream

    async def disconnect_late(peer: str) -> None:
        await wake.wait()
        await disconnect(peer)

    async def open_and_note(peer: str, protocol: str) -> tuple[RawStream, str]:
        opened.append(peer)
        return await open_stream(peer, protocol)

    async def story() -> None:
        deaf = await swarm.peer()
        deaf.channel.answer("echo", echo)
        deaf.channel._listening.clear()
        await host.channel.send(deaf.id, step(1))
        assert await host.loss() == (deaf.id, "it has fallen silent")
        monkeypatch.setattr(host.daemon, "open_known_stream", open_and_note)
        with pytest.raises(Deadline):
            await host.channel.send(deaf.id, step(2), timeout_seconds=0.1)
        with pytest.raises(Deadline):
            await host.channel.ask(deaf.id, "echo", b"", timeout_seconds=0.1)
        assert opened == []
        wake.set()
        assert await host.channel.ask(deaf.id, "echo", b"again") == b"again"
        await host.channel.send(deaf.id, step(2))
        assert opened == [deaf.id, deaf.id]
        assert await host.loss() == (deaf.id, "it has fallen silent")  # not cut off by ourselves

    monkeypatch.setattr(host.daemon, "disconnect", disconnect_late)
    swarm.run(story())


async def pour(sender: Peer, receiver: Peer, mebibytes: int) -> None:
    for at in range(mebibytes):
        await sender.channel.send(receiver.id, step(at, bytes(2**20)), timeout_seconds=0.5)


def test_a_peer_that_reads_nothing_stops_its_senders(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        sender = await swarm.peer(ping_seconds=NO_BEAT_SECONDS)
        deaf = await swarm.peer(ping_seconds=NO_BEAT_SECONDS)
        deaf.channel._listening.clear()
        with pytest.raises(Deadline):
            await pour(sender, deaf, mebibytes=64)
        with pytest.raises(PeerRefused):  # only its streams stand still
            await sender.channel.ask(deaf.id, "echo", b"")
        deaf.channel._listening.set()
        assert await deaf.message() == (sender.id, step(0, bytes(2**20)))

    swarm.run(story())


def test_pings_are_not_messages(swarm: Swarm, victim: Peer, rogue: Peer) -> None:
    async def story() -> None:
        stream = await raw_stream(rogue, victim)
        await stream.write(victim.channel._codec.encode(Ping(77)))
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        hearing = asyncio.create_task(
            stream.hear(lambda header, _: heard.put_nowait(bytes(header)))
        )
        assert b"PONG" in await asyncio.wait_for(heard.get(), 10)
        hearing.cancel()
        stream.abort()
        assert victim.messages.empty()

    swarm.run(story())


def test_a_peer_that_is_refused_gets_neither_answers_nor_streams(swarm: Swarm) -> None:
    async def story() -> None:
        host, bad = await swarm.peer(), await swarm.peer()
        host.channel.answer("echo", echo)
        assert await bad.channel.ask(host.id, "echo", b"hello") == b"hello"
        await bad.channel.send(host.id, step(0))
        await host.message()
        banned: set[str] = set()
        host.daemon.door._refusal = lambda peer, _: "It is banned." if peer in banned else ""
        banned.add(bad.id)
        assert (await bad.loss())[0] == host.id, "the stream that was open ends within a beat"
        with pytest.raises(PeerRefused, match="It is banned"):
            await bad.channel.ask(host.id, "echo", b"hello")
        with pytest.raises(PeerRefused, match="Not asked: It is banned"):
            await host.channel.ask(bad.id, "echo", b"hello")
        with pytest.raises(PeerRefused, match="banned"):
            await host.channel.send(bad.id, step(1))
        assert host.messages.empty()

    swarm.run(story())


def test_a_client_of_an_allowed_node_says_so_and_gets_answers_and_streams(swarm: Swarm) -> None:
    async def story() -> None:
        host, client, other = await swarm.peer(), await swarm.peer(), await swarm.peer()
        node = Identity.throwaway()
        host.channel.answer("echo", echo)
        host.daemon.door._refusal = PeerLists(allowed=[node.peer]).problem_with
        host.daemon.door._introductions = Introductions(swarm.id)
        for stranger in (client, other):
            with pytest.raises(PeerRefused, match="only with peers that it has allowed"):
                await stranger.channel.ask(host.id, "echo", b"hello")
        shown = introduction_of(swarm.id, client.id, [node], CLOCK.now())
        for stranger in (client, other):  # the other one has overheard it
            stranger.daemon.door._introductions = Introductions(swarm.id, shown)
        assert await client.channel.ask(host.id, "echo", b"hello") == b"hello"
        await client.channel.send(host.id, step(0))
        assert (await host.message())[0] == client.id
        await host.channel.send(client.id, step(1))
        assert (await client.message())[0] == host.id
        with pytest.raises(PeerRefused, match="only with peers that it has allowed"):
            await other.channel.ask(host.id, "echo", b"hello")
        plain = await swarm.peer()
        plain.channel.answer("echo", echo)  # has no list, and no use for introductions
        assert await client.channel.ask(plain.id, "echo", b"hello") == b"hello"

    swarm.run(story())


def test_a_stream_of_bytes_is_handed_over_and_ends_with_its_handler(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        asked: asyncio.Queue[str] = asyncio.Queue()

        async def echo_once(
            peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            asked.put_nowait(peer)
            writer.write(await reader.readexactly(5))

        host.channel.answer_streams(echo_once)
        reader, writer = await other.channel.open_stream(host.id)
        writer.write(b"bytes")
        assert await reader.read() == b"bytes"
        writer.close()
        assert await asked.get() == other.id

    swarm.run(story())


def test_a_confirmation_comes_behind_all_that_was_sent(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        sent = [step(at, bytes(2**16)) for at in range(9)]
        for message in sent:
            await host.channel.send(other.id, message)
        await host.channel.confirm(other.id, timeout_seconds=5.0)
        assert [await other.message() for _ in sent] == [(host.id, message) for message in sent]
        assert host.channel.send_now(other.id, step(9))  # nobody is in line for the stream
        await other.message()

    swarm.run(story())


def test_a_stream_of_bytes_is_ended_where_nobody_wants_it_or_the_proof_is_wrong(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        reader, writer = await host.channel.open_stream(other.id)
        assert await reader.read() == b""
        writer.close()
        protocol = host.channel._raw.protocol
        reader, writer = await other.daemon.open_stream(host.id, protocol)
        writer.write(bytes(32))
        assert await reader.read() == b""
        writer.close()

    swarm.run(story())


def test_a_peer_that_reads_nothing_confirms_nothing(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        deaf = await swarm.peer(ping_seconds=NO_BEAT_SECONDS, listens=False)
        await host.channel.send(deaf.id, step(1))
        with pytest.raises(Deadline, match="did not confirm"):
            await host.channel.confirm(deaf.id, timeout_seconds=0.3)
        assert (await host.loss())[0] == deaf.id  # a fresh stream that brought nothing is dropped
        with pytest.raises(PeerLost):
            await host.channel.confirm(peer_named("nobody"), timeout_seconds=5.0)


def test_large_answers_say_what_the_way_carries_at_least(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        async def answer(_peer: str, payload: bytes) -> bytes:
            return bytes(int(payload))

        host.channel.answer("bytes", answer)
        shares: list[tuple[str, float]] = []
        other.channel.listen_for_rates(
            lambda _peer, _rate: None, lambda peer, rate: shares.append((peer, rate))
        )
        await other.channel.ask(host.id, "bytes", b"1000")
        assert shares == []
        await other.channel.ask(host.id, "bytes", b"600000")
        ((peer, rate),) = shares
        assert peer == host.id
        assert rate > 0

    swarm.run(story())
