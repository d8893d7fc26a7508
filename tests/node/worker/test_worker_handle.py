"""The node's side of a worker that is slow, answers late, or cannot be started."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from node.worker.messages import CODEC, Broken, Compute, Computed, Prepared, Release, Reserved
from node.worker.spawned_worker import WorkerPlace
from node.worker.worker_handle import END_SECONDS, WorkerProcess
from swarm.errors import EngineError
from swarm.wire.messages import Busy, Message
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, FIRST, Stand, until


class Puppet(WorkerProcess):
    """A WorkerProcess whose other end a test holds."""

    theirs: socket.socket

    @classmethod
    @contextlib.asynccontextmanager
    async def held(cls, answers: list[Message]) -> AsyncIterator["Puppet"]:
        made = cls(WorkerPlace("cpu", 1, 1.0))
        made.listen(answers.append)
        ours, made.theirs = socket.socketpair()
        await made._attach(ours)
        with made.theirs:
            yield made
            made._protocol.ended.cancel()
            made._transport.abort()

    def say(self, answer: Message) -> None:
        self.theirs.sendall(b"".join(CODEC.encode(answer)))


def test_a_door_that_was_asked_for_earlier_is_not_taken_for_the_new_one() -> None:
    async def story() -> None:
        async with Puppet.held([]) as worker:
            asking = asyncio.create_task(worker.prepare("new", "127.0.0.1"))
            await asyncio.sleep(0)
            worker.say(Prepared("old", 1, b"old"))
            worker.say(Prepared("new", 2, b"new"))
            assert await asking == Prepared("new", 2, b"new")

    asyncio.run(story())


def test_an_answer_that_one_listener_cannot_handle_is_logged_and_all_others_hear_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        first: list[Message] = []
        heard: list[Message] = []
        async with Puppet.held(first) as worker:

            def stumble(answer: Message) -> None:
                if isinstance(answer, Computed):
                    raise KeyError("a bug")

            worker.listen(stumble)
            worker.listen(heard.append)
            worker.say(Computed("s:1", 0, 1, False))
            worker.say(Reserved("t:1", 900))
            await until(lambda: len(heard) == 2)
            assert [type(each) for each in heard] == [Computed, Reserved]
            assert first == heard
            assert not worker.ended.is_set()

    asyncio.run(story())
    assert "was not understood" in caplog.text


def test_whoever_waits_for_a_group_that_is_lost_hears_it_at_once() -> None:
    async def story() -> None:
        heard: list[Message] = []
        async with Puppet.held(heard) as worker:
            asking = asyncio.create_task(worker.prepare("g", "192.0.2.1"))
            await asyncio.sleep(0)
            worker.say(Broken("another", "not ours"))
            worker.say(Broken("g", "cannot listen there"))
            with pytest.raises(EngineError, match="cannot listen there"):
                await asking
            assert [type(each) for each in heard] == [Broken, Broken]

    asyncio.run(story())


def test_a_worker_that_we_killed_is_lost_for_why_we_did() -> None:
    async def story() -> None:
        heard: list[Message] = []
        async with Puppet.held(heard) as worker:
            worker._process = SimpleNamespace(kill=worker.theirs.close)  # type: ignore[assignment]
            worker._kill("a step computes nothing any more")
            await until(lambda: heard)
            why = "the worker process hung and was killed: a step computes nothing any more"
            assert heard == [Broken("", why)]
            with pytest.raises(EngineError, match="has ended"):
                await worker.prepare("g", "127.0.0.1")

    asyncio.run(story())


def test_a_worker_that_ends_by_itself_is_lost_for_how_its_connection_ended() -> None:
    async def story() -> None:
        heard: list[Message] = []
        async with Puppet.held(heard) as worker:
            worker.theirs.close()
            await until(lambda: heard)
            assert heard == [Broken("", "the worker process ended: it closed the connection")]

    asyncio.run(story())


def test_a_worker_that_reads_nothing_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.worker_handle.BACKLOG_BYTES", 1 << 20)

    async def story() -> None:
        async with Puppet.held([]) as worker:
            assert not worker.is_behind
            for position in range(4):
                worker.order(Compute("s:1", position, 1, False, "f32", body=bytes(1 << 20)))
            assert worker.is_behind

    asyncio.run(story())


def test_a_worker_that_cannot_be_started_again_has_still_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with Puppet.held([]) as worker:
            worker.ended.set()

            async def close() -> None:
                return None

            async def fail(*_: object, **__: object) -> None:
                raise OSError("no more processes")

            monkeypatch.setattr(worker, "close", close)
            monkeypatch.setattr("asyncio.create_subprocess_exec", fail)
            with pytest.raises(OSError, match="no more processes"):
                await worker.restart()
            assert worker.ended.is_set()

    asyncio.run(story())


def test_rows_for_a_worker_that_is_behind_send_the_client_elsewhere(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.worker.is_behind = True
        await stand.send(stand.step(), sender=FIRST)
        assert stand.client.last(Busy).reason == "The worker is behind."
        assert stand.worker.count(Compute) == 0
        assert stand.worker.count(Release) == 1
        stand.worker.is_behind = False
        await stand.send(stand.open(epoch=2), sender=CLIENT)
        await stand.answer(Reserved(stand.name(epoch=2), 900))
        assert stand.server.sessions == 1

    at_stand(story)


def test_a_worker_that_has_not_spoken_yet_is_ended_at_once() -> None:
    async def story() -> float:
        worker = await WorkerProcess.spawn(WorkerPlace("cpu", 1, 1.0))
        asked = time.perf_counter()
        await worker.close()  # it still loads torch, and would not see its socket close for seconds
        return time.perf_counter() - asked

    assert asyncio.run(story()) < END_SECONDS
