"""A node without the model gets its files from peers: every chunk is checked, liars are left."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from huggingface_hub import constants

from client.network import Links
from client.request import LocalModel
from node.serving.weight_server import WeightServer
from swarm.checkpoint import peer_downloader
from swarm.checkpoint.byte_ranges import ByteRanges, size_of
from swarm.checkpoint.chunk_index import ChunkIndex, HashedFiles, hash_files
from swarm.checkpoint.folder import read_spec
from swarm.checkpoint.peer_downloader import QUESTION, open_from_peers
from swarm.checkpoint.safetensors_headers import read_headers
from swarm.checkpoint.sparse_file import present
from swarm.checkpoint.weight_store import FetchProgress, WeightStore
from swarm.errors import BadModel, EngineError, PeerError, PeerRefused, SwarmError
from swarm.records import PENDING, Capability, Manifest
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.whole.reference_model import TINY

FILE = "model.safetensors"
CAUSE = BadModel("There is no folder /elsewhere.")
T = TypeVar("T")
Answer = Callable[[str, bytes], Awaitable[bytes]]


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(story)


@pytest.fixture(scope="module")
def hashed() -> HashedFiles:
    found = hash_files(TINY)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no waiting between rounds."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(peer_downloader, "PAUSE_SECONDS", 0.01)
    return tmp_path


@dataclass
class Peers:
    """A founder's word on a board, peers that answer, and one who asks."""

    world: MemoryWorld
    hashed: HashedFiles

    async def found(self, inventory: str = "") -> None:
        spec = read_spec(TINY, "tiny")
        word = inventory or self.hashed.index.digest
        manifest = Manifest("/elsewhere", spec.digest, "f32", 1.0, "", word)
        await self.world.board(peer_named("founder")).publish(manifest)

    async def add(self, name: str) -> str:
        peer = peer_named(name)
        record = Capability("model", [], [], "host", reachable=True, since=1.0)
        await self.world.board(peer).publish(record)
        return peer

    async def holder(self, name: str, folder: Path = TINY) -> WeightServer:
        weight_server = WeightServer(self.world.channel(await self.add(name)), folder)
        await weight_server.open_as_founder() if folder == TINY else weight_server._open(
            self.hashed
        )
        return weight_server

    async def liar(self, name: str, change: Callable[[bytes], bytes]) -> list[bytes]:
        """A peer that answers like a holder, but with other chunks; returns what it was asked."""
        inner = self.world.channel(await self.add(name))
        weight_server = WeightServer(inner, TINY)
        weight_server._open(self.hashed)
        honest: Answer = weight_server._answer
        asked: list[bytes] = []

        async def lie(peer: str, payload: bytes) -> bytes:
            answer = await honest(peer, payload)
            if msgpack.unpackb(payload)[0] != "chunks":
                return answer
            asked.append(payload)
            return change(answer)

        inner.answer(QUESTION, lie)
        return asked

    def links(self) -> Links:
        me = peer_named("newcomer")
        return Links(self.world.board(me), self.world.channel(me))

    async def open(self) -> tuple[Path, WeightStore]:
        links = self.links()
        return await open_from_peers(links.channel, links.board, CAUSE)


@pytest.fixture
def peers(hashed: HashedFiles) -> Peers:
    return Peers(MemoryWorld(), hashed)


def ranges_of_layer(layer: int) -> ByteRanges:
    headers = read_headers(TINY)
    return tuple((h.start, h.end) for h in headers if f"layers.{layer}." in h.name)


async def ensure(store: WeightStore, layer: int) -> int:
    return await asyncio.to_thread(store.ensure, {FILE: ranges_of_layer(layer)}, FetchProgress())


def is_right(folder: Path, layer: int) -> bool:
    data, real = (folder / FILE).read_bytes(), (TINY / FILE).read_bytes()
    return all(data[low:high] == real[low:high] for low, high in ranges_of_layer(layer))


def test_metadata_files_come_whole_and_weights_only_as_wanted(peers: Peers) -> None:
    async def story() -> None:
        await peers.found()
        await peers.holder("one")
        await peers.holder("two")
        folder, store = await peers.open()
        assert read_spec(folder, "tiny") == read_spec(TINY, "tiny")
        assert LocalModel.of(folder, "tiny").tokenizer.ids_of_text("Once") == (
            LocalModel.of(TINY, "tiny").tokenizer.ids_of_text("Once")
        )
        header = size_of(present(folder / FILE))
        await ensure(store, 3)
        held = size_of(present(folder / FILE)) - header
        assert is_right(folder, 3)
        wanted = size_of(ranges_of_layer(3))
        assert wanted <= held <= wanted + 2 * peers.hashed.index.chunk
        assert await ensure(store, 3) == 0

    run(story())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"\0",
    ],
)
def test_a_wrong_byte_is_refused_and_the_next_peer_asked(
    peers: Peers, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def liar_first(found: list[str]) -> None:
        found.sort(key=lambda peer: peer != peer_named("liar"))

    monkeypatch.setattr("random.shuffle", liar_first)

    async def story() -> None:
        await peers.found()
        asked = await peers.liar("liar", change)
        await peers.holder("honest")
        folder, store = await peers.open()
        for layer in range(4):
            await ensure(store, layer)
            assert is_right(folder, layer)
        assert 0 < len(asked) <= peer_downloader.STREAMS  # then nobody believes it any more

    run(story())


def test_if_all_lie_the_load_fails_with_a_next_step(peers: Peers) -> None:
    async def story() -> None:
        await peers.found()
        await peers.holder("honest")
        _, store = await peers.open()
        peers.world.channels.pop(peer_named("honest"))
        await peers.liar("honest", lambda data: bytes(len(data)))
        with pytest.raises(EngineError, match="No peer that answers") as caught:
            await ensure(store, 0)
        assert caught.value.next_step

    run(story())


def test_a_peer_that_holds_a_part_gives_that_part(peers: Peers, home: Path) -> None:
    async def story() -> None:
        await peers.found()
        await peers.holder("whole")
        folder, store = await peers.open()
        await ensure(store, 1)
        copy = home / "copy"
        shutil.copytree(folder, copy)
        peers.world.channels.clear()
        peers.world.records.clear()
        await peers.found()
        await peers.holder("part", copy)
        shutil.rmtree(folder)
        again, thin = await peers.open()
        assert await ensure(thin, 1) > 0
        assert is_right(again, 1)
        with pytest.raises(EngineError, match="No peer that answers"):
            await ensure(thin, 6)

    run(story())


def test_a_silent_peer_costs_its_deadline_and_another_gives(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await peers.found()
        silent = peers.world.channel(await peers.add("silent"))

        async def wait(_peer: str, _payload: bytes) -> bytes:
            await asyncio.sleep(60)
            return b""

        silent.answer(QUESTION, wait)
        await peers.holder("honest")
        folder, store = await peers.open()
        await ensure(store, 2)
        assert is_right(folder, 2)

    for name in ("ANSWER_SECONDS", "HAVE_SECONDS", "NEXT_SECONDS"):
        monkeypatch.setattr(peer_downloader, name, 0.2)
    run(story())


def test_only_a_few_are_served_at_once_and_the_others_come_again(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await peers.found()
        weight_server = await peers.holder("busy")
        links = peers.links()
        question = msgpack.packb(["chunks", weight_server.digest, FILE, 0, 1])
        busy = peer_named("busy")
        weight_server._busy = 4
        with pytest.raises(PeerRefused) as caught:
            await links.channel.ask(busy, QUESTION, question)
        assert caught.value.retry_after_seconds > 0
        opening = asyncio.create_task(peers.open())
        await asyncio.sleep(0.3)
        assert not opening.done()
        weight_server._busy = 0
        folder, _ = await opening
        assert read_spec(folder, "tiny").layers == 8

    run(story())


@pytest.mark.parametrize(
    "question",
    [
        b"\xc1",
        msgpack.packb("inventory"),
        msgpack.packb(["inventory", "0" * 64]),
        msgpack.packb(["chunks", "DIGEST", FILE, 0, 1 << 20]),
        msgpack.packb(["chunks", "DIGEST", FILE, -1, 1]),
        msgpack.packb(["chunks", "DIGEST", FILE, 10**9, 1]),
        msgpack.packb(["chunks", "DIGEST", "../config.json", 0, 1]),
        msgpack.packb(["digests", "DIGEST", FILE, 0, 0]),
        msgpack.packb(["have", "DIGEST", "/etc/passwd"]),
        msgpack.packb(["have", "DIGEST", 5]),
    ],
)
def test_nonsense_is_refused_and_the_desk_goes_on(peers: Peers, question: bytes) -> None:
    async def story() -> None:
        weight_server = await peers.holder("one")
        links, one = peers.links(), peer_named("one")
        fit = question
        if b"DIGEST" in question:
            values = [
                weight_server.digest if v == "DIGEST" else v for v in msgpack.unpackb(question)
            ]
            fit = msgpack.packb(values)
        with pytest.raises(PeerError):
            await links.channel.ask(one, QUESTION, fit)
        held = await links.channel.ask(
            one, QUESTION, msgpack.packb(["have", weight_server.digest, FILE])
        )
        assert msgpack.unpackb(held) == [[0, (TINY / FILE).stat().st_size]]

    run(story())


def test_without_an_inventory_the_first_cause_is_told(peers: Peers) -> None:
    async def story() -> None:
        with pytest.raises(BadModel, match="no folder /elsewhere"):
            await peers.open()

    peer_seconds = pytest.MonkeyPatch()
    peer_seconds.setattr("swarm.checkpoint.peer_downloader.KNOWN_SECONDS", 0.05)
    run(story())
    peer_seconds.undo()


def test_an_inventory_that_is_being_made_is_waited_for(peers: Peers) -> None:
    async def story() -> None:
        await peers.found(PENDING)
        await peers.holder("one")
        opening = asyncio.create_task(peers.open())
        await asyncio.sleep(0.2)
        assert not opening.done()
        await peers.found()
        assert (await opening)[0].is_dir()

    run(story())


def test_peers_that_never_answer_do_not_keep_the_holder_from_being_asked(peers: Peers) -> None:
    async def story() -> None:
        await peers.found()
        for number in range(5 * peer_downloader.PEERS):
            await peers.add(f"stranger {number}")
        await peers.holder("holder")
        folder, store = await peers.open()
        await ensure(store, 3)
        assert is_right(folder, 3)

    run(story())


def test_a_peer_that_says_busy_holds_nothing_that_another_gives(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await peers.found()
        await peers.holder("honest")
        await peers.liar("busy", lambda _: _raise(PeerRefused("No.", retry_after_seconds=1e-9)))
        folder, store = await peers.open()
        await ensure(store, 3)
        assert is_right(folder, 3)

    monkeypatch.setattr(peer_downloader, "BUSY_SECONDS", 0.2)
    run(story())


def test_if_all_are_busy_the_load_fails_in_time(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await peers.found()
        await peers.holder("once")
        _, store = await peers.open()
        peers.world.channels.pop(peer_named("once"))
        await peers.liar("once", lambda _: _raise(PeerRefused("No.", retry_after_seconds=1e-9)))
        with pytest.raises(EngineError, match="No peer that answers"):
            await ensure(store, 3)

    monkeypatch.setattr(peer_downloader, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(peer_downloader, "LEAST_REST_SECONDS", 0.03)
    run(story())


def _raise(error: Exception) -> bytes:
    raise error


def test_a_desk_hands_out_nothing_but_what_the_inventory_says(peers: Peers, home: Path) -> None:
    async def story() -> None:
        (home / "private").mkdir()
        secret = bytes((TINY / FILE).stat().st_size)
        (home / "private" / FILE).write_bytes(secret)
        weight_server = await peers.holder("victim", home / "private")
        links = peers.links()
        question = msgpack.packb(["chunks", weight_server.digest, FILE, 0, 1])
        with pytest.raises(PeerError, match="not here"):
            await links.channel.ask(peer_named("victim"), QUESTION, question)

    run(story())


@pytest.mark.parametrize(
    "entries",
    [
        [[f"tokenizer{n}", 1, "0" * 64] for n in range(65)],
        [[f"tokenizer{n}", 1 << 26, "0" * 64] for n in range(3)],
        [["config.json", 1, "0" * 64]] * 2,
        [["../x.safetensors", 1, "0" * 64]],
        [["run.py", 1, "0" * 64]],
        [["model.safetensors", -1, "0" * 64]],
        [["model.safetensors", 1 << 60, "0" * 64]],
        [["config.json", 1 << 40, "0" * 64]],
        [["config.json", 1, "0"]],
        [["config.json", 1]],
        5,
    ],
)
def test_an_inventory_that_asks_too_much_of_us_is_refused(entries: object) -> None:
    with pytest.raises(SwarmError):
        ChunkIndex.of_bytes(msgpack.packb([1 << 14, entries]))


def test_a_whole_chunk_index_survives_its_bytes(hashed: HashedFiles) -> None:
    assert ChunkIndex.of_bytes(hashed.index.to_bytes()) == hashed.index
    names = {entry.name for entry in hashed.index.entries}
    assert {"config.json", "tokenizer.json", FILE} <= names
