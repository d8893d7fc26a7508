"""ServedModel: what a node serves, found in a folder, on the hub or at the peers."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from node.config import NodeConfig
from node.network.bootstrap import KNOWN_SECONDS, NodeNetwork, require_swarm
from swarm.checkpoint.folder import is_hub_id, open_model
from swarm.checkpoint.folder_check import FolderCheck
from swarm.checkpoint.hub_model import hub_weights_of
from swarm.checkpoint.known_specs import recall_spec
from swarm.checkpoint.peer_downloader import PeerDownloader, open_from_peers, wait_for_manifest
from swarm.checkpoint.weight_store import WeightStore
from swarm.errors import BadInput, BadModel, SwarmError, Unreachable
from swarm.model_spec import BUILT_IN, ModelSpec
from swarm.records import PENDING, Manifest
from swarm.state_folder import (
    FOLDER_MARK,
    local_name,
    shared_name,
    title_of,
)
from swarm.trust.network_clock import CLOCK


class SpecReader(Protocol):
    """Reads the dimensions of the model in a folder, elsewhere; raises BadModel."""

    def __call__(self, folder: Path, name: str) -> Awaitable[ModelSpec]: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that this node serves."""

    name: str
    folder: Path
    spec: ModelSpec
    store: WeightStore | None = None  # fills the folder, if it is not whole
    revision: str = ""  # the hub's commit, if it comes from there
    weights: str = ""  # a digest over what the hub says its weight files hold

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine, and neither built in nor of the hub."""
        return self.name.startswith(FOLDER_MARK)

    @property
    def is_for_all(self) -> bool:
        """Whether its files may be handed out: they are here, and not in everybody's package."""
        return self.store is None and self.name != BUILT_IN


async def read_model(
    name: str, describe: SpecReader, *, revision: str = "", served_name: str = ""
) -> ServedModel:
    """Find a model and its numbers; raises BadInput, BadModel, Unreachable."""
    folder, store, shared = await asyncio.to_thread(_located, name, revision, served_name)
    commit = folder.name if shared == name and is_hub_id(name) else ""
    spec = await _described(folder, title_of(shared), describe)
    weights = hub_weights_of(folder) if commit else ""
    return ServedModel(shared, folder, spec, store, commit, weights)


async def _described(folder: Path, title: str, describe: SpecReader) -> ModelSpec:
    """The dimensions of a model: remembered, or read where transformers is loaded."""
    return await asyncio.to_thread(recall_spec, folder, title) or await describe(folder, title)


def _located(name: str, revision: str, served_name: str) -> tuple[Path, WeightStore | None, str]:
    """Where a model is, what fills that folder if it is thin, and the name that others know."""
    folder, store = open_model(name, revision=revision)
    if name != BUILT_IN and Path(name).expanduser().is_dir():
        return folder, store, shared_name(folder, served_name)
    if served_name:
        raise BadInput(
            f"--served-model-name: others find {name} by this name only.", "Leave it out."
        )
    return folder, store, name


async def read_founded(config: NodeConfig, describe: SpecReader) -> ServedModel:
    """The model that a founder was asked to serve; raises BadInput, BadModel, Unreachable."""
    return await read_model(config.model, describe, served_name=config.served_name)


async def find_served(
    name: str, network: NodeNetwork, state: Path, describe: SpecReader
) -> ServedModel:
    """The swarm's model: from this machine, the hub, or the peers; raises BadModel, Unreachable.

    Whatever lies here is held against the founder's word, its weights as well.
    """
    manifest = await network.manifests.find(KNOWN_SECONDS)
    if manifest is None:
        raise Unreachable(
            "The host of this swarm is away, and no peer knows what it serves.",
            "Start again when the host is back.",
        )
    cause: SwarmError
    try:
        local = local_name(state, network.invite.swarm, name)
        served = await read_model(local, describe, revision=manifest.revision)
        return replace(await _checked(served, manifest, network), name=name)
    except (BadModel, Unreachable) as error:
        cause = error
    find = network.manifests.find
    folder, store = await open_from_peers(network.channel, network.board, cause, find)
    spec = await _described(folder, title_of(name), describe)
    return ServedModel(name, folder, spec, store)


async def find_served_once_joined(
    network: NodeNetwork, state: Path, describe: SpecReader
) -> ServedModel:
    """The swarm's model, from this machine if nobody is met; waits for its peers where it is not.

    Raises BadInvite, BadModel, Unreachable.
    """
    name, is_known = network.invite.model, await network.manifests.find() is not None
    if is_known and not network.joined.is_set():
        with suppress(BadModel, Unreachable):
            return await find_served(name, network, state, describe)
    if not network.joined.is_set():
        await network.joined.wait()
        await require_swarm(network.board, network.invite.swarm)
    return await find_served(name, network, state, describe)


async def _checked(served: ServedModel, manifest: Manifest, network: NodeNetwork) -> ServedModel:
    """A copy that is the swarm's model, as far as can be seen now; raises BadModel."""
    cause = BadModel(
        f"The copy of {title_of(served.name)} here is not the model that the swarm serves.",
        "Put the very same files there, or move this copy away.",
    )
    known = manifest.weights and served.weights
    if manifest.digest != served.spec.digest or (known and manifest.weights != served.weights):
        raise cause
    if served.revision or served.name == BUILT_IN or not manifest.inventory:
        return served
    settled = await wait_for_manifest(network.manifests.find, cause)
    source = PeerDownloader(network.channel, network.board, settled.inventory)
    return replace(served, store=await FolderCheck.open(served.folder, source))


def manifest_of(served: ServedModel, inventory: str = PENDING) -> Manifest:
    """The founder's word on what its swarm serves, and what peers may hand out of it."""
    known = inventory if served.is_for_all else ""
    digest, now = served.spec.digest, CLOCK.now()
    return Manifest(served.name, digest, "f32", now, served.revision, known, served.weights)
