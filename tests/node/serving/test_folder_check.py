"""A copy of the model that was here before is held against the host's digests before it serves."""

import asyncio
import os
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from node.serving.weight_server import WeightServer
from swarm.checkpoint import chunk_digests
from swarm.checkpoint.chunk_digests import ChunkDigests
from swarm.checkpoint.chunk_index import LEAST_CHUNK, hash_files
from swarm.checkpoint.folder_check import FolderCheck
from swarm.checkpoint.peer_downloader import PeerDownloader
from swarm.checkpoint.safetensors_headers import read_headers
from swarm.checkpoint.weight_store import FetchProgress
from swarm.errors import BadModel
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.whole.reference_model import TINY

FILE = "model.safetensors"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newcomer's own copy of the model."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def source_of() -> PeerDownloader:
    world, host = MemoryWorld(), peer_named("host")
    await world.board(host).publish(Capability("m", [], [], "h", reachable=True, since=1.0))
    weight_server = WeightServer(world.channel(host), TINY)
    await weight_server.open_as_founder()
    me = peer_named("newcomer")
    return PeerDownloader(world.channel(me), world.board(me), weight_server.digest)


def spoil(path: Path, at: int) -> None:
    """Change one byte of a file, and nothing that a listing shows."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def ranges_of(layer: int) -> dict[str, tuple[tuple[int, int], ...]]:
    headers = [each for each in read_headers(TINY) if f"layers.{layer}." in each.name]
    return {FILE: tuple((each.start, each.end) for each in headers)}


def test_the_very_same_copy_is_taken_and_read_once_only(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        check = await FolderCheck.open(copy, await source_of())
        assert await asyncio.to_thread(check.ensure, ranges_of(3), FetchProgress()) == 0
        monkeypatch.setattr(ChunkDigests, "_read", lambda *_: pytest.fail("read again"))
        again = FolderCheck(copy, check._peers)
        assert await asyncio.to_thread(again.ensure, ranges_of(3), FetchProgress()) == 0

    run(story())


def test_other_weights_of_the_same_shape_are_found_out_at_once(copy: Path) -> None:
    async def story() -> None:
        source = await source_of()
        path = copy / FILE
        head = min(each.start for each in read_headers(copy))
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(head)
            file.write(bytes(size - head))
        with pytest.raises(BadModel, match="not the file of that name that the swarm serves"):
            await FolderCheck.open(copy, source)

    run(story())


def test_a_file_of_another_size_is_found_out_at_once(copy: Path) -> None:
    async def story() -> None:
        source = await source_of()
        with (copy / FILE).open("ab") as file:
            file.write(b"more")
        with pytest.raises(BadModel, match="not the file of that name"):
            await FolderCheck.open(copy, source)

    run(story())


def test_one_wrong_byte_is_found_out_by_the_shard_that_would_use_it(copy: Path) -> None:
    async def story() -> None:
        source = await source_of()
        (start, end), *_ = ranges_of(5)[FILE]
        check = await FolderCheck.open(copy, source)
        await asyncio.to_thread(check.ensure, ranges_of(3), FetchProgress())
        spoil(copy / FILE, (start + end) // 2)
        await asyncio.to_thread(check.ensure, ranges_of(3), FetchProgress())
        with pytest.raises(BadModel, match="not the file of that name"):
            await asyncio.to_thread(check.ensure, ranges_of(5), FetchProgress())
        assert "move this copy away" in str(await asyncio.wait_for(check.refused(), 5))

    run(story())


def test_what_is_remembered_of_a_file_ends_with_its_change(copy: Path) -> None:
    path = copy / FILE
    first = ChunkDigests(path, LEAST_CHUNK)
    before = list(first.of(0, first.count))
    first.remember()
    assert list(ChunkDigests(path, LEAST_CHUNK).of(0, first.count)) == before
    spoil(path, 5 * LEAST_CHUNK)  # of the same size, and set back to the same time
    after = list(ChunkDigests(path, LEAST_CHUNK).of(0, first.count))
    assert [at for at, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1] == [
        5
    ]


def test_a_host_digests_its_folder_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hash_files(copy)
    monkeypatch.setattr(ChunkDigests, "_read", lambda *_: pytest.fail("read again"))
    assert hash_files(copy) == hashed


def test_nothing_is_remembered_of_a_file_that_changes_while_it_is_read(copy: Path) -> None:
    path = copy / FILE
    digests = ChunkDigests(path, LEAST_CHUNK)
    list(digests.of(0, 3))
    spoil(path, 0)
    digests.remember()
    assert not list((Path(constants.HF_HOME) / "swarm" / chunk_digests.FOLDER).glob("*"))
