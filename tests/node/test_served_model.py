"""The model that a newcomer finds here is held against the founder's word, weights and all."""

import asyncio
import shutil
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from node import served_model
from node.network.bootstrap import NodeNetwork
from node.served_model import (
    ServedModel,
    SpecReader,
    find_served,
    find_served_once_joined,
    read_model,
)
from node.serving.weight_server import WeightServer
from swarm.checkpoint.folder_check import FolderCheck
from swarm.dht.board import Board
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.errors import BadModel, Unreachable
from swarm.invites import Invite
from swarm.p2p.channel import Channel
from swarm.records import Capability, Manifest
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity, swarm_id
from tests.builders import describe
from tests.whole.reference_model import TINY

FILE = "model.safetensors"
FOUNDER = Identity.throwaway()
SWARM = swarm_id("friends", FOUNDER.peer)


@dataclass
class Ways:
    """The part of a node's network that finding a model needs."""

    channel: Channel
    board: Board
    manifests: ManifestKeeper
    invite: Invite
    joined: asyncio.Event


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(served_model, "KNOWN_SECONDS", 0.0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def found(world: MemoryWorld, folder: Path) -> Manifest:
    """A founder that serves a folder; what it says."""
    board = world.board(FOUNDER.peer)
    await board.publish(Capability("m", [], [], "h", reachable=True, since=1.0))
    weight_server = WeightServer(world.channel(FOUNDER.peer), folder)
    await weight_server.open_as_founder()
    served = await read_model(str(folder), describe)
    manifest = served_model.manifest_of(served, weight_server.digest)
    await board.publish(manifest)
    return manifest


def network_of(world: MemoryWorld) -> NodeNetwork:
    me = peer_named("newcomer")
    channel, board = world.channel(me), world.board(me)
    invite = Invite((), SWARM, "./model")
    keeper, joined = ManifestKeeper(channel, board, SWARM), asyncio.Event()
    return cast("NodeNetwork", Ways(channel, board, keeper, invite, joined))


async def find(name: str, world: MemoryWorld) -> ServedModel:
    """What a newcomer without a state folder serves."""
    return await find_served(name, network_of(world), Path("/nowhere"), describe)


def copy_of(folder: Path, factor: float = 1.0) -> Path:
    shutil.copytree(TINY, folder)
    weights = load_file(folder / FILE)
    if factor != 1.0:
        changed = {name: each * factor for name, each in weights.items()}
        save_file(changed, folder / FILE, metadata={"format": "pt"})
    return folder


def test_the_same_folder_is_served_and_checked_as_it_loads(tmp_path: Path) -> None:
    async def story() -> None:
        world = MemoryWorld()
        await found(world, TINY)
        own = copy_of(tmp_path / "own")
        served = await find(str(own), world)
        assert served.folder == own
        assert isinstance(served.store, FolderCheck)

    run(story())


def test_a_folder_of_the_same_shape_with_other_weights_is_not_served(tmp_path: Path) -> None:
    async def story() -> None:
        world = MemoryWorld()
        manifest = await found(world, TINY)
        other = copy_of(tmp_path / "other", 0.5)
        assert (await read_model(str(other), describe)).spec.digest == manifest.digest
        served = await find(str(other), world)
        assert served.folder != other  # the peers have the right one
        world.channels.pop(FOUNDER.peer)
        with pytest.raises(BadModel):
            await find(str(other), world)

    run(story())


def test_a_hub_model_is_taken_at_the_commit_and_with_the_hashes_that_the_founder_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    real = asyncio.run(read_model(str(TINY), describe))
    here = replace(real, name="some/model", revision="c" * 40, weights="w" * 64)

    async def read(name: str, describe: SpecReader, *, revision: str = "") -> ServedModel:
        asked.append((name, revision))
        return here

    async def story() -> None:
        world = MemoryWorld()
        said = Manifest("some/model", here.spec.digest, "f32", 1.0, "c" * 40, "", "w" * 64)
        await world.board(FOUNDER.peer).publish(said)
        assert await find("some/model", world) == here
        await world.board(FOUNDER.peer).publish(replace(said, weights="v" * 64))
        with pytest.raises(BadModel, match="not the model that the swarm serves"):
            await find("some/model", world)
        await world.board(FOUNDER.peer).publish(replace(said, digest="0" * 64))
        with pytest.raises(BadModel, match="not the model that the swarm serves"):
            await find("some/model", world)

    monkeypatch.setattr(served_model, "read_model", read)
    run(story())
    assert asked == [("some/model", "c" * 40)] * 3


def test_without_the_founders_word_nothing_is_taken_by_its_name_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        served_model, "read_model", lambda *_: pytest.fail("taken by its name alone")
    )
    with pytest.raises(Unreachable, match="no peer knows what it serves"):
        asyncio.run(find("some/model", MemoryWorld()))


def test_who_is_alone_and_knows_nothing_waits_for_its_swarm() -> None:
    async def story() -> None:
        world = MemoryWorld()
        network = network_of(world)
        finding = asyncio.create_task(find_served_once_joined(network, Path("/nowhere"), describe))
        await asyncio.sleep(0)
        await found(world, TINY)
        assert not finding.done()
        network.joined.set()
        assert (await asyncio.wait_for(finding, 20)).name == "./model"

    run(story())


def test_who_is_alone_serves_what_it_remembers_and_has(tmp_path: Path) -> None:
    async def story() -> None:
        world = MemoryWorld()
        own = copy_of(tmp_path / "own")
        network = network_of(world)
        network = cast("Any", replace(cast("Any", network), invite=Invite((), SWARM, str(own))))
        said = served_model.manifest_of(await read_model(str(own), describe), "")
        network.manifests._manifest = said  # as it was kept in the folder
        assert not network.joined.is_set()
        served = await find_served_once_joined(network, Path("/nowhere"), describe)
        assert served.folder == own

    run(story())
