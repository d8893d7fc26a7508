"""The control socket: whose orders a node hears, and what no client of it can do to the node."""

import asyncio
import socket
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
import uvloop

from node.owner import control_server
from node.owner.control_server import CONNECTIONS, LINGERS, Answers, Words, open_control
from swarm.commands import control_socket
from swarm.commands.control_socket import (
    LENGTH,
    ORDER_CAP,
    POINTER,
    SOCKET,
    LocalNode,
    bind_socket,
    local_nodes,
    packed,
    the_local_node,
    words_of_error,
)
from swarm.errors import (
    BadInput,
    BadSampling,
    Deadline,
    EngineError,
    NoRoute,
    PeerLost,
    SwarmError,
    Unreachable,
)
from swarm.state_folder import make_private_folder
from swarm.task_set import TaskSet

SECONDS = 20.0
T = TypeVar("T")


def run(story: Coroutine[Any, Any, T]) -> T:
    """Run a story on the loop that nodes have."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(story)


async def echo(name: str, words: Words) -> Words:
    if name == "refuse":
        raise BadInput("Not that.", "Ask for something else.")
    if name == "stumble":
        raise KeyError("a bug")
    return {"name": name, **words}


@asynccontextmanager
async def node_in(
    folder: Path, carry_out: Any = echo, bit_by_bit: Mapping[str, Answers] | None = None
) -> AsyncIterator[LocalNode]:
    """A node that hears orders in a folder."""
    make_private_folder(folder)
    async with asyncio.timeout(SECONDS), open_control(folder, carry_out, bit_by_bit):
        (node,) = await asyncio.to_thread(local_nodes, folder.parent)
        yield node


async def ask(node: LocalNode, order: str, **words: Any) -> dict[str, Any]:
    return await asyncio.to_thread(partial(node.ask, order, **words))


def test_an_order_is_carried_out_and_answered_and_an_error_says_what_to_do(tmp_path: Path) -> None:
    async def story() -> None:
        async with node_in(tmp_path / "node-1") as node:
            assert await ask(node, "pause", seconds=2.0) == {"name": "pause", "seconds": 2.0}
            with pytest.raises(SwarmError, match=r"Not that\. Ask for something else\."):
                await ask(node, "refuse")
            with pytest.raises(SwarmError, match="stumbled"):
                await ask(node, "stumble")
            assert await ask(node, "status") == {"name": "status"}
        assert local_nodes(tmp_path) == []
        assert list((tmp_path / "node-1").iterdir()) == []

    run(story())


def test_the_socket_is_for_its_user_alone_also_where_its_path_would_be_too_long(
    tmp_path: Path,
) -> None:
    deep = tmp_path.joinpath(*["a folder with a long name"] * 6)

    async def story(folder: Path) -> Path:
        async with node_in(folder) as node:
            assert stat.S_IMODE(node.path.stat().st_mode) == 0o600
            assert (await ask(node, "pause"))["name"] == "pause"
            if (folder / POINTER).exists():
                assert stat.S_IMODE(node.path.parent.stat().st_mode) == 0o700
                assert stat.S_IMODE((folder / POINTER).stat().st_mode) == 0o600
            return node.path

    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as short:
        near = run(story(Path(short, "node-1")))
        assert near == Path(short, "node-1", SOCKET)
    far = run(story(deep / "node-1"))
    assert len(str(far)) <= control_socket.PATH_CAP
    assert not far.parent.exists()
    assert list((deep / "node-1").iterdir()) == []


@pytest.mark.parametrize("depth", [0, 6])
def test_what_a_dead_node_left_behind_is_replaced_and_is_no_node(
    tmp_path: Path, depth: int
) -> None:
    folder = tmp_path.joinpath(*["a folder with a long name"] * depth, "node-1")
    folder.mkdir(parents=True)
    bind_socket(folder).close()  # nobody has removed it
    assert local_nodes(folder.parent) == []
    left = control_socket._path_in(folder)
    assert left is not None

    async def story() -> None:
        async with node_in(folder) as node:
            assert (await ask(node, "pause"))["name"] == "pause"

    run(story())
    assert not left.exists()


def test_a_program_of_another_user_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with node_in(tmp_path / "node-1") as node:
            monkeypatch.setattr(control_server, "is_ours", lambda _line: False)
            with pytest.raises(Unreachable, match="does not answer"):
                await ask(node, "pause")
            monkeypatch.setattr(control_server, "is_ours", control_socket.is_ours)
            monkeypatch.setattr(control_socket, "is_ours", lambda _line: False)
            with pytest.raises(Unreachable, match="another user"):  # nor does ours speak to his
                await ask(node, "pause")
            monkeypatch.undo()
            assert (await ask(node, "pause"))["name"] == "pause"

    run(story())


def test_it_is_the_system_that_says_whose_a_connection_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control_socket.is_ours(ours)


NONSENSE = [
    b"",
    b"\x00",
    LENGTH.pack(ORDER_CAP + 1) + bytes(100),
    LENGTH.pack(2**32 - 1),
    LENGTH.pack(3) + b"\xc1\xc1\xc1",
    LENGTH.pack(1) + b"\x07",
    packed({"order": 5}, ORDER_CAP),
    LENGTH.pack(5) + b"\x81\x90\x01\x00\x00",
    LENGTH.pack(4000) + b"\x91" * 4000,
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda data: data[:8].hex() or "nothing")
def test_nonsense_ends_its_own_connection_and_nothing_else(nonsense: bytes, tmp_path: Path) -> None:
    async def story() -> None:
        async with node_in(tmp_path / "node-1") as node:
            reader, writer = await asyncio.open_unix_connection(node.path)
            writer.write(nonsense)
            writer.write_eof()
            said = await reader.read()
            assert said == b"" or "error" in msgpack.unpackb(said[LENGTH.size :])
            writer.close()
            assert await ask(node, "status") == {"name": "status"}

    run(story())


def test_who_says_nothing_is_put_out_in_time_and_only_so_many_are_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "ORDER_SECONDS", 0.2)

    async def story() -> None:
        async with node_in(tmp_path / "node-1") as node:
            idle = [await asyncio.open_unix_connection(node.path) for _ in range(3 * CONNECTIONS)]
            ends = await asyncio.gather(*(each.read() for each, _ in idle), return_exceptions=True)
            assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
            assert await ask(node, "status") == {"name": "status"}
            for _, writer in idle:
                writer.close()

    run(story())


def test_who_does_not_take_a_long_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "ORDER_SECONDS", 0.2)

    async def story() -> None:
        async def at_length(name: str, _words: Words) -> Words:
            return {"name": name, "much": bytes(1 << 24) if name == "status" else b""}

        async with node_in(tmp_path / "node-1", at_length) as node:
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.connect(str(node.path))
                deaf.sendall(packed({"order": "status"}, ORDER_CAP))
                await asyncio.sleep(0)
                assert (await ask(node, "pause"))["name"] == "pause"

    run(story())


def test_an_order_that_takes_too_long_is_answered_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "ANSWER_SECONDS", 0.05)

    async def story() -> None:
        async def never(_name: str, _words: Words) -> Words:
            await asyncio.Event().wait()
            raise AssertionError

        async with node_in(tmp_path / "node-1", never) as node:
            with pytest.raises(SwarmError, match="not done it in time"):
                await ask(node, "pause")

    run(story())


def test_who_lets_a_node_leave_hears_when_it_has_ended(tmp_path: Path) -> None:
    async def story() -> None:
        told = asyncio.Event()

        async def leave(_name: str, _words: Words) -> Words:
            told.set()
            return {LINGERS: True}

        async with node_in(tmp_path / "node-1", leave) as node:
            leaving = asyncio.create_task(asyncio.to_thread(node.ask_to_leave, SECONDS))
            await told.wait()
            assert not (await asyncio.wait([leaving], timeout=0.05))[0]
        assert await leaving

    run(story())


def test_a_node_that_can_have_no_socket_lives_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_folder: Path) -> socket.socket:
        raise OSError("no space left on device")

    monkeypatch.setattr(control_server, "bind_socket", refuse)

    async def story() -> None:
        async with open_control(tmp_path, echo):
            assert local_nodes(tmp_path.parent) == []

    run(story())
    assert "no space left" in caplog.text


def test_which_node_is_meant_is_clear_or_the_error_says_how_to_say_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"No node runs .* `swarm node`"):
        the_local_node(tmp_path)

    async def story() -> None:
        async with node_in(tmp_path / "node-2"):
            assert (await asyncio.to_thread(the_local_node, tmp_path)).folder.name == "node-2"
            (tmp_path / "node-10").mkdir()
            async with open_control(tmp_path / "node-10", echo):
                with pytest.raises(BadInput, match=r"node-2, node-10\. Say which: --node node-2"):
                    await asyncio.to_thread(the_local_node, tmp_path)
                found = await asyncio.to_thread(the_local_node, tmp_path, "node-10")
                assert found.folder.name == "node-10"
                with pytest.raises(BadInput, match="No node node-3 runs here"):
                    await asyncio.to_thread(the_local_node, tmp_path, "node-3")

    run(story())


class Telling:
    """Answers bit by bit, as far as the story lets it."""

    def __init__(self) -> None:
        self.go_on, self.ended = asyncio.Event(), asyncio.Event()

    async def answers(
        self, words: Words, enough: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        try:
            yield {"said": words.get("about", "")}
            if words.get("about") == "a slip":
                raise KeyError("a bug")
            if words.get("about") == "an error":
                raise BadSampling("top_p is 2;", "it must be smaller.", option="top_p")
            async with TaskSet() as tasks:
                waits = [tasks.create("a wait", each.wait()) for each in (enough, self.go_on)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            yield {"said": "enough" if enough.is_set() else "more"}
        finally:
            self.ended.set()


def test_an_order_may_be_answered_bit_by_bit_with_signs_of_life_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "BEAT_SECONDS", 0.01)

    async def story() -> None:
        telling = Telling()
        beats = []
        unpack = control_socket.unpacked

        def counted(data: bytes, cap: int) -> object:
            said = unpack(data, cap)
            if said == {"answer": {}}:
                beats.append(said)
                if len(beats) == 3:
                    loop.call_soon_threadsafe(telling.go_on.set)
            return said

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(control_socket, "unpacked", counted)
        async with node_in(tmp_path / "node-1", bit_by_bit={"tell": telling.answers}) as node:

            def read() -> list[dict[str, Any]]:
                with node.ask_for_all("tell", about="owls") as (answers, _stop):
                    return list(answers)

            assert await asyncio.to_thread(read) == [{"said": "owls"}, {"said": "more"}]
            assert len(beats) >= 3
            assert telling.ended.is_set()

    run(story())


def test_who_asks_may_say_that_it_is_enough_or_hang_up(tmp_path: Path) -> None:
    async def story() -> None:
        telling = Telling()
        async with node_in(tmp_path / "node-1", bit_by_bit={"tell": telling.answers}) as node:

            def stop() -> list[dict[str, Any]]:
                with node.ask_for_all("tell") as (answers, stop):
                    return [next(answers), stop() or {}, *answers]

            assert (await asyncio.to_thread(stop))[-1] == {"said": "enough"}
            telling.ended.clear()

            def hang_up() -> dict[str, Any]:
                with node.ask_for_all("tell", about="owls") as (answers, _stop):
                    return next(answers)

            assert await asyncio.to_thread(hang_up) == {"said": "owls"}
            await telling.ended.wait()

    run(story())


def test_what_goes_wrong_bit_by_bit_is_the_last_word_and_keeps_its_kind(tmp_path: Path) -> None:
    async def story() -> None:
        telling = Telling()
        async with node_in(tmp_path / "node-1", bit_by_bit={"tell": telling.answers}) as node:

            def read(about: str) -> list[dict[str, Any]]:
                with node.ask_for_all("tell", about=about) as (answers, _stop):
                    return list(answers)

            with pytest.raises(BadSampling, match="top_p is 2; it must be smaller") as caught:
                await asyncio.to_thread(read, "an error")
            assert caught.value.option == "top_p"
            with pytest.raises(SwarmError, match="stumbled"):
                await asyncio.to_thread(read, "a slip")

    run(story())


def test_a_node_that_ends_or_falls_silent_in_mid_answer_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "SILENCE_SECONDS", 0.05)

    async def story() -> None:
        telling = Telling()
        async with node_in(tmp_path / "node-1", bit_by_bit={"tell": telling.answers}) as node:

            def read() -> list[dict[str, Any]]:
                with node.ask_for_all("tell") as (answers, _stop):
                    return list(answers)

            with pytest.raises(Unreachable, match="does not answer"):
                await asyncio.to_thread(read)

    run(story())


@pytest.mark.parametrize("kind", [BadInput, BadSampling, NoRoute, Deadline, PeerLost, EngineError])
def test_an_error_arrives_as_what_it_was(kind: type[SwarmError]) -> None:
    said = msgpack.unpackb(packed(words_of_error(kind("A cause.", "Do this.")), 1000)[4:])
    with pytest.raises(kind, match=r"^A cause\. Do this\.$") as caught:
        control_socket._answer_of(said)
    assert type(caught.value) is kind


@pytest.mark.parametrize("kind", [None, 5, "Exception", "KeyboardInterrupt", "Path", [1]])
def test_an_error_of_no_known_kind_is_one_all_the_same(kind: object) -> None:
    with pytest.raises(SwarmError, match=r"A cause\."):
        control_socket._answer_of({"error": ["A cause.", ""], "kind": kind})
