"""Two real nodes: the owner of one takes its devices back in mid-answer, and gives them again."""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest

import client
from client.event_loop_thread import EventLoopThread
from swarm.commands.package_finder import command_of
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.reference_model import expected
from tests.whole.swarms import NodeProcess, Part, nodes_in, shard_bytes, swarm, wait_until

pytestmark = pytest.mark.nodes

ALL = shard_bytes(SPEC, SPEC.layers, *WHOLE, ends=2)
PROMPT, TOKENS = "Once upon a time", 400
FREE_SECONDS = 2.0  # what the owner of a machine is promised
WORKER = command_of("node.worker")[-1]


@dataclass
class Pair:
    """Two nodes that each hold the whole model, and somebody who asks them."""

    first: NodeProcess
    second: NodeProcess
    loop_thread: EventLoopThread
    client: client.Client


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with nodes_in(tmp_path_factory.mktemp("paused")) as nodes, EventLoopThread() as loop_thread:
        first = nodes.start(Part("first", ALL), "--host")
        invite = first.line("invite:")
        second = nodes.start(Part("second", ALL, slowdown=2.0), "--join", invite)
        first.line("ready:")
        second.line("ready:")
        with loop_thread.hold(client.Client(invite)) as asking:
            yield Pair(first, second, loop_thread, asking)


def workers_of(node: NodeProcess) -> list[int]:
    """Every process of a node that holds the memory of a device, or is to."""
    return [child.pid for child in psutil.Process(node.process.pid).children() if _works(child)]


def _works(child: psutil.Process) -> bool:
    try:
        return WORKER in " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # a zombie holds no memory
        return False


def answer_during(pair: Pair, act: Callable[[], object]) -> list[int]:
    """The ids of an answer, in the middle of which something is done."""
    begun = threading.Event()

    async def story() -> list[int]:
        async with pair.client.stream(PROMPT, max_tokens=TOKENS) as stream:
            async for _piece in stream:
                begun.set()
            return list((await stream.finish()).token_ids)

    answering = pair.loop_thread.start(story())
    assert begun.wait(30.0)
    act()
    return answering.result(60.0)


def test_a_pause_in_mid_answer_frees_the_memory_and_costs_no_token(pair: Pair) -> None:
    first = pair.first

    def pause() -> None:
        first.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: not workers_of(first), FREE_SECONDS, first.said)

    assert len(workers_of(first)) == 1
    assert answer_during(pair, pause) == expected(PROMPT, TOKENS)
    assert first.line("paused:").startswith("swarm pause")
    assert f"{first.part.name}" in swarm("status", state=first.state).stdout

    told = len(first.lines)
    resumed = swarm("resume", state=first.state)
    assert resumed.stdout == "node-1 serves again\n", resumed.stderr
    first.line("ready:", after=told)

    def pause_by_order() -> None:
        done = swarm("pause", "--for", "1h", state=first.state)
        assert "node-1 is paused for 60 min" in done.stdout, done.stderr
        assert workers_of(first) == []

    assert answer_during(pair, pause_by_order) == expected(PROMPT, TOKENS)

    left = swarm("leave", state=first.state)
    assert left.stdout == "node-1 has left\n", left.stderr
    assert first.process.wait(5.0) == 0
    assert not (first.state / "node-1" / "control.sock").exists()
