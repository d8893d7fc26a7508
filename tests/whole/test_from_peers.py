"""A swarm founded from a folder, joined by a node and a client that have neither folder nor hub."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from huggingface_hub import constants

import client
from client.event_loop_thread import EventLoopThread
from swarm.checkpoint.byte_ranges import size_of
from swarm.checkpoint.safetensors_headers import read_headers
from swarm.checkpoint.sparse_file import present
from swarm.invites import Invite
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.reference_model import TINY, expected
from tests.whole.swarms import Nodes, Part, nodes_in, shard_bytes

pytestmark = pytest.mark.nodes

HALF = shard_bytes(SPEC, 4, *WHOLE, ends=1)  # ranks of one stage would each need both ends
HOST = Part("host", HALF)
NEWCOMER = Part("newcomer", HALF, slowdown=1.5)
RESTART_SECONDS = 30.0  # 10 on an idle machine, where imports are most of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def invite(folder: Path) -> Iterator[tuple[Nodes, str]]:
    """Two nodes; the second one is told a folder that is not on its machine."""
    copytree(TINY, folder / "model")
    with nodes_in(folder) as nodes:
        host = nodes.start(HOST, "--host", "--model", str(folder / "model"))
        told = Invite.parse(host.line("invite:"))
        elsewhere = replace(told, model="/on/another/machine/model").encode()
        other = nodes.start(NEWCOMER, "--join", elsewhere, HF_HOME=str(folder / "cache"))
        host.line("ready:")
        other.line("ready:")
        yield nodes, elsewhere


def test_the_newcomer_fetches_its_own_layers_from_the_host(
    invite: tuple[Nodes, str], folder: Path
) -> None:
    nodes, _ = invite
    assert "fetched from other peers" in nodes.started[1].line("ready:")
    assert "fetched" not in nodes.started[0].line("ready:")
    (path,) = (folder / "cache").rglob("model.safetensors")
    whole = path.stat().st_size
    assert path.stat().st_blocks * 512 < 0.75 * whole
    data, real = path.read_bytes(), (TINY / "model.safetensors").read_bytes()
    assert all(data[low:high] == real[low:high] for low, high in present(path))
    assert size_of(present(path)) < 0.75 * whole


def test_a_client_gets_the_metadata_from_peers_and_the_tokens_are_right(
    invite: tuple[Nodes, str],
    folder: Path,
    loop_thread: EventLoopThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(folder / "asking"))
    with loop_thread.hold(client.Client(invite[1])) as asking:
        generation = loop_thread.run(
            asyncio.wait_for(asking.generate("Once upon a time", max_tokens=24), 60)
        )
    assert list(generation.token_ids) == expected("Once upon a time", 24)
    assert [stage.end - stage.start for stage in generation.route] == [4, 4]
    (path,) = (folder / "asking").rglob("model.safetensors")
    first = min(header.start for header in read_headers(TINY))
    assert size_of(present(path)) < first + (1 << 14)


def test_a_node_that_is_started_again_serves_its_part_from_its_own_disk(
    invite: tuple[Nodes, str], folder: Path
) -> None:
    nodes, elsewhere = invite
    before = nodes.started[1]
    before.kill()
    again = nodes.start(NEWCOMER, "--join", elsewhere, HF_HOME=str(folder / "cache"))
    ready = again.line("ready:")
    assert "fetched" not in ready
    assert ready.split(",")[0] == before.line("ready:").split(",")[0]  # its layers
    assert again.peer_tail == before.peer_tail
    assert again.seconds_to("ready:") < RESTART_SECONDS
