"""A real worker process of one device: what it is told, what it answers, how it ends."""

import asyncio
import os
import signal
import socket
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from node.worker.compute_loop import Worker
from node.worker.messages import (
    Broken,
    Compute,
    Computed,
    Failed,
    Given,
    Load,
    Loaded,
    Measure,
    Measured,
    Need,
    Progress,
    Release,
    Reserve,
    Reserved,
    Unload,
)
from node.worker.scheduler import Arrived
from node.worker.spawned_worker import WorkerPlace
from node.worker.worker_handle import WorkerProcess
from swarm.checkpoint.folder import read_spec
from swarm.errors import BadModel, EngineError
from swarm.wire.messages import Message
from swarm.wire.sampling_params import Sampling
from tests.node.stands import until
from tests.node.worker.shards import BUDGET, FOLDER, lone_shard, reserve, rows_of, spec_of
from tests.node.worker.shards import generate as generate_here
from tests.whole.reference_model import text_of

PROMPT = [10, 200, 33, 47, 5, 81]
SECONDS = 60.0  # a cold import of torch on a busy machine
MEASURE = Measure(read_spec(FOLDER, "swarm-tiny").to_json())
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Worked:
    """A worker process and everything that it has answered."""

    def __init__(self) -> None:
        self.answers: list[Message] = []
        self.process: WorkerProcess

    async def spawn(self) -> "Worked":
        self.process = await WorkerProcess.spawn(WorkerPlace("cpu", 1, 1.0))
        self.process.listen(self._hear)
        return self

    def _hear(self, answer: Message) -> None:
        self.answers.append(answer)
        if isinstance(answer, Need):  # all weights are in the folder
            self.process.order(Given(answer.group))

    async def ask(self, order: Message, kind: type[Message]) -> Any:
        """Give an order and wait for an answer of a kind."""
        before = len(self.answers)
        self.process.order(order)
        return await self.hear(kind, before)

    async def hear(self, kind: type[Message], before: int = 0) -> Any:
        def found() -> list[Message]:
            return [each for each in self.answers[before:] if isinstance(each, kind)]

        await until(found, SECONDS)
        return found()[-1]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One event loop for the tests of this file: processes are shared between them."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def worker(run: Run) -> Iterator[Worked]:
    """A worker that every test leaves without a shard."""
    worked = run(Worked().spawn())
    yield worked
    run(worked.process.close())


def load_order(group: str, budget: int = BUDGET) -> Load:
    spec = asdict(spec_of(0, 8)) | {"folder": str(FOLDER)}
    return Load(group, spec | {"kv_bounds": [0, 8], "mlp_bounds": [0, 8]}, budget)


def pid_of(worker: WorkerProcess) -> int:
    return worker._process.pid


def test_it_compiles_grammars_beside_its_work_and_refuses_wrong_ones(
    run: Run, worker: Worked
) -> None:
    async def story() -> None:
        await worker.ask(load_order("g"), Loaded)
        sampling = Sampling(max_tokens=8, grammar=("regex", "(yes|no), please"))
        opened = await worker.ask(reserve("s", PROMPT, sampling=sampling), Reserved)
        assert (opened.session, opened.code) == ("s", "")
        drawn = await worker.ask(rows_of("s", 0, PROMPT), Computed)
        assert text_of(drawn.ids)[0] in "yn"
        wrong = replace(sampling, grammar=("regex", "("))
        refused = await worker.ask(reserve("w", PROMPT, sampling=wrong), Reserved)
        assert (refused.session, refused.code) == ("w", "bad_frame")
        assert "unclosed group" in refused.reason
        worker.process.order(Release("s"))
        worker.process.order(Unload())

    run(story())


def test_it_measures_its_device_on_the_models_shapes(run: Run, worker: Worked) -> None:
    measured: Measured = run(worker.process.measure(MEASURE))
    assert measured.bytes_per_second > 1e6
    assert measured.flops > 1e6


def test_it_reads_for_its_node_what_a_model_is(run: Run, worker: Worked, tmp_path: Path) -> None:
    spec = run(worker.process.describe(FOLDER, "mine"))
    assert spec == read_spec(FOLDER, "mine")
    with pytest.raises(BadModel, match=r"has no config\.json") as refused:
        run(worker.process.describe(tmp_path, "nothing"))
    assert "Name a folder with a Hugging Face model" in refused.value.next_step


def test_it_loads_serves_releases_and_unloads(run: Run, worker: Worked) -> None:
    async def story() -> None:
        loaded: Loaded = await worker.ask(load_order("g1"), Loaded)
        assert loaded.group == "g1"
        assert loaded.weight_bytes <= loaded.bytes_read * 2 + 1
        assert loaded.step_seconds > 0
        assert [each for each in worker.answers if isinstance(each, Progress)][-1].fraction == 1.0
        opened: Reserved = await worker.ask(reserve("s", PROMPT, 64), Reserved)
        assert (opened.session, opened.code) == ("s", "")
        assert opened.free_tokens == loaded.free_tokens - 64
        computed: Computed = await worker.ask(rows_of("s", 0, PROMPT), Computed)
        assert computed.compute_us > 0
        assert computed.finish == ""
        sampling = Sampling(max_tokens=1)
        assert computed.ids == generate_here([lone_shard(0, 8)], PROMPT, sampling)
        worker.process.order(Release("s"))
        again: Reserved = await worker.ask(reserve("t", PROMPT, 64), Reserved)
        assert again.free_tokens == opened.free_tokens
        worker.process.order(Unload())
        failed: Failed = await worker.ask(rows_of("t", 0, PROMPT), Failed)
        assert failed.code == "stage_lost"
        refused: Reserved = await worker.ask(reserve("u", PROMPT, 64), Reserved)
        assert refused.code == "stage_lost"

    run(story())


def test_a_dropped_shard_is_freed_before_the_next_one_is_loaded() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, device="cpu", slowdown=1.0)
        worker._weight_requests.given(Given("g1"))
        worker._control(load_order("g1"))
        assert worker._runner is not None
        model = weakref.ref(worker._runner._stage.model)
        worker._control(Unload())
        assert model() is None


def test_who_opens_a_session_hears_so_before_the_rows_of_others_are_computed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, device="cpu", slowdown=1.0)
        worker._shard = shard = lone_shard(0, 8)
        for order in (reserve("old", PROMPT, 64), rows_of("old", 0, PROMPT)):
            shard.apply([order])
        seen: list[type[Message]] = []  # orders as they run, answers as they leave
        apply = shard.apply

        def noted(orders: Sequence[Message]) -> list[Message]:
            seen.extend(map(type, orders))
            return apply(orders)

        shard.apply = noted  # type: ignore[method-assign]
        worker._answer = lambda *answers: seen.extend(map(type, answers))  # type: ignore[method-assign]
        for order in (rows_of("old", len(PROMPT), [1]), reserve("new", PROMPT, 64)):
            worker._handle(Arrived(order, 0.0))
        worker._step()
        assert seen == [Reserve, Reserved, Compute, Computed]


def test_a_shard_that_does_not_fit_is_reported_and_the_worker_lives(
    run: Run, worker: Worked
) -> None:
    async def story() -> None:
        broken: Broken = await worker.ask(load_order("small", 1000), Broken)
        assert broken.group == "small"
        assert "of a budget of" in broken.reason
        loaded: Loaded = await worker.ask(load_order("large"), Loaded)
        assert loaded.group == "large"
        worker.process.order(Unload())

    run(story())


def test_orders_of_many_sessions_are_answered_each_once(run: Run, worker: Worked) -> None:
    async def story() -> None:
        await worker.ask(load_order("many"), Loaded)
        before = len(worker.answers)
        prompts = {f"s{number}": PROMPT[: 1 + number % 6] for number in range(16)}
        for session, ids in prompts.items():
            worker.process.order(reserve(session, ids, 64))
        for session, ids in prompts.items():
            worker.process.order(rows_of(session, 0, ids))
        await until(lambda: len(worker.answers) >= before + 32, SECONDS)
        computed = [each for each in worker.answers[before:] if isinstance(each, Computed)]
        assert sorted(each.session for each in computed) == sorted(prompts)
        worker.process.order(Unload())

    run(story())


def test_a_group_is_prepared_with_a_port_and_a_certificate(run: Run, worker: Worked) -> None:
    async def story() -> None:
        one = await worker.process.prepare("p1", "127.0.0.1")
        other = await worker.process.prepare("p2", "127.0.0.1")
        assert one.group == "p1"
        assert 0 < other.port < 65536
        assert one.certificate != other.certificate
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", one.port)
        _, writer = await asyncio.open_connection("127.0.0.1", other.port)
        writer.close()
        worker.process.order(Unload())

    run(story())


def test_rows_that_come_before_a_shard_are_refused(run: Run, worker: Worked) -> None:
    async def story() -> None:
        failed = await worker.ask(replace(rows_of("early", 0, [1])), Failed)
        assert failed.session == "early"

    run(story())


def test_a_killed_worker_is_reported_and_started_again_and_exits_with_its_node(run: Run) -> None:
    async def story() -> None:
        worked = await Worked().spawn()
        asking = asyncio.create_task(worked.process.measure(MEASURE))
        await asyncio.sleep(0)
        os.kill(pid_of(worked.process), signal.SIGKILL)
        broken: Broken = await worked.hear(Broken)
        assert broken.group == ""
        assert "ended" in broken.reason
        assert worked.process.ended.is_set()
        with pytest.raises(EngineError, match="ended"):
            await asking
        worked.process.order(Unload())
        worked.process.order(Reserve("s", 1, 0, {}))
        await worked.process.restart()
        assert not worked.process.ended.is_set()
        refused: Reserved = await worked.ask(reserve("t", PROMPT), Reserved)
        assert (refused.session, refused.code) == ("t", "stage_lost")
        worked.process._transport.close()  # what happens when the node dies
        async with asyncio.timeout(SECONDS):
            assert await worked.process._process.wait() == 0
        await worked.process.close()
        assert [type(each) for each in worked.answers[:2]] == [Broken, Reserved]

    run(story())
