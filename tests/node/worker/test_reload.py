"""A real worker that gets another shard: it keeps layers, and is given what is not here."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.device.weight_fetch import WeightFetch
from node.worker.messages import Broken, Computed, Given, Load, Loaded, Need, Progress, Unload
from node.worker.spawned_worker import WorkerPlace
from node.worker.weight_requests import need_of, wanted_of
from node.worker.worker_handle import WorkerProcess
from swarm.checkpoint.byte_ranges import ByteRanges, size_of
from swarm.checkpoint.safetensors_headers import PREFIX_BYTES, header_end
from swarm.checkpoint.sparse_file import FileFacts, SparseFile
from swarm.checkpoint.weight_store import Take, WeightStore
from swarm.errors import EngineError, RemoteProtocolError
from swarm.wire.messages import Message
from tests.node.stands import until
from tests.node.worker.shards import BUDGET, FOLDER, reserve, rows_of

FILE = "model.safetensors"
PROMPT = [10, 200, 33]
SECONDS = 60.0
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class FolderSource:
    """Gives what a folder holds, or says why not."""

    name = "a folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.refusal = ""
        self.waits = threading.Event()
        self.waits.set()

    def fetch(self, file: str, facts: FileFacts, ranges: ByteRanges, take: Take) -> None:
        assert self.waits.wait(SECONDS)
        if self.refusal:
            raise EngineError(self.refusal)
        data = (self._folder / file).read_bytes()
        assert facts.size == len(data)
        for low, high in ranges:
            take(low, data[low:high])


class Fed:
    """A worker process, and the node's side that gives it weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = FolderSource(FOLDER)
        self.answers: list[Message] = []

    async def spawn(self) -> "Fed":
        self.worker = await WorkerProcess.spawn(WorkerPlace("cpu", 1, 1.0))
        self.worker.listen(self._hear)
        self.seen: list[float] = []
        store = WeightStore(self.folder, self.source)
        self.thin = WeightFetch(self.worker, store, self.seen.append)
        self.whole = WeightFetch(self.worker, None, self.seen.append)
        self.weight_fetch = self.thin
        return self

    def _hear(self, answer: Message) -> None:
        self.answers.append(answer)
        if isinstance(answer, Need):
            self.weight_fetch.serve(answer)

    async def load(self, start: int, end: int, folder: Path | None = None) -> Any:
        """Load layers and return the worker's last word on them."""
        self.weight_fetch = self.whole if folder else self.thin
        spec = {"folder": str(folder or self.folder), "start": start, "end": end, "rank": 0}
        before = len(self.answers)
        whole = {"kv_bounds": [0, 8], "mlp_bounds": [0, 8]}
        self.worker.order(Load(f"{start}-{end}", spec | whole, BUDGET))
        return await self.hear(Loaded | Broken, before)

    async def hear(self, kind: Any, before: int = 0) -> Any:
        def found() -> list[Message]:
            return [each for each in self.answers[before:] if isinstance(each, kind)]

        await until(found, SECONDS)
        return found()[-1]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def fed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    """A worker whose model is here as headers only."""
    folder = tmp_path_factory.mktemp("thin")
    (folder / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    data = (FOLDER / FILE).read_bytes()
    sparse = SparseFile(folder / FILE, FileFacts(len(data), "tag"))
    end = header_end(data[:PREFIX_BYTES], FILE)
    sparse.write(0, data[:end])
    sparse.note(((0, end),))
    made = run(Fed(folder).spawn())
    yield made
    run(made.worker.close())


def test_layers_are_fetched_once_kept_in_memory_and_read_again_only_when_forgotten(
    run: Run, fed: Fed
) -> None:
    async def story() -> None:
        first: Loaded = await fed.load(0, 4)
        assert isinstance(first, Loaded)
        assert first.bytes_kept == 0
        fetched = fed.weight_fetch.fetched_bytes
        assert first.bytes_read <= fetched <= 1.01 * first.bytes_read
        assert fed.seen[-1] == 1.0
        fed.worker.order(Unload(keep=True))
        second: Loaded = await fed.load(1, 6)
        new_layers = 2 / 5
        assert second.bytes_kept == pytest.approx(second.weight_bytes * (1 - new_layers), rel=0.01)
        assert second.bytes_read == pytest.approx(first.bytes_read / 2, rel=0.2)
        fed.worker.order(Unload())
        third: Loaded = await fed.load(1, 6)
        assert third.bytes_kept == 0
        needs = [wanted_of(each) for each in fed.answers if isinstance(each, Need)]
        assert fed.weight_fetch.fetched_bytes == 0  # the third load found everything on the disk
        shared = {(low, high) for low, high in needs[0][FILE]} & set(needs[1][FILE])
        assert not shared
        assert size_of(needs[1][FILE]) == second.bytes_read
        fed.worker.order(Unload())

    run(story())


def test_a_shard_with_kept_layers_draws_the_same_tokens(run: Run, fed: Fed) -> None:
    async def ids() -> list[int]:
        await fed.hear(Loaded)
        fed.worker.order(reserve("s", PROMPT, 64))
        before = len(fed.answers)
        fed.worker.order(rows_of("s", 0, PROMPT))
        computed: Computed = await fed.hear(Computed, before)
        return computed.ids

    async def story() -> None:
        await fed.load(0, 8, FOLDER)
        expected = await ids()
        fed.worker.order(Unload())
        await fed.load(0, 5, FOLDER)
        fed.worker.order(Unload(keep=True))
        kept: Loaded = await fed.load(0, 8, FOLDER)
        assert kept.bytes_kept > 0
        assert await ids() == expected
        fed.worker.order(Unload())

    run(story())


def test_weights_that_nobody_gives_break_the_load_and_not_the_worker(run: Run, fed: Fed) -> None:
    async def story() -> None:
        fed.source.refusal = "The hub is gone."
        broken: Broken = await fed.load(6, 8)
        assert isinstance(broken, Broken)
        assert "hub is gone" in broken.reason
        fed.source.refusal = ""
        assert isinstance(await fed.load(6, 8), Loaded)
        fed.worker.order(Unload())

    run(story())


def test_a_worker_that_waits_for_weights_listens_to_other_plans(run: Run, fed: Fed) -> None:
    async def story() -> None:
        (fed.folder / f"{FILE}.map").write_text(
            (fed.folder / f"{FILE}.map").read_text().partition('"present"')[0] + '"present": []}'
        )
        sparse = SparseFile.again(fed.folder / FILE)
        assert sparse is not None
        sparse.note(((0, 20_000),))
        fed.source.waits.clear()
        before = len(fed.answers)
        waiting = asyncio.create_task(fed.load(0, 2))
        await fed.hear(Need, before)
        fed.worker.order(Unload())
        broken = await waiting
        assert "other plans" in broken.reason
        fed.weight_fetch.stop()
        fed.source.waits.set()
        await until(lambda: not fed.weight_fetch.is_busy)
        assert isinstance(await fed.load(0, 3), Loaded)
        assert any(isinstance(each, Progress) for each in fed.answers)

    run(story())


@pytest.mark.parametrize("body", [b"", b"\x01", b"\xc1", b"\x81\xa1a\x93\x01\x02\x03"])
def test_a_need_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        wanted_of(Need("g", body=body))


def test_a_need_and_its_answer_survive_the_wire() -> None:
    wanted: dict[str, ByteRanges] = {FILE: ((0, 5), (9, 12))}
    assert wanted_of(need_of("g", wanted)) == wanted
    assert Given("g").reason == ""
