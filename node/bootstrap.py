"""Opening a node: its model, identity, daemon, board, channel and measured devices."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from node.config import NodeConfig
from node.probe import Detected, chosen_dtype, detect
from node.worker.messages import Measure, Measured
from node.worker.worker_handle import WorkerPlace, WorkerProcess
from swarm.checkpoint.expected_tensors import require_complete
from swarm.checkpoint.folder import is_hub_id, open_model, read_spec
from swarm.checkpoint.folder_check import FolderCheck
from swarm.checkpoint.hub_model import hub_weights_of
from swarm.checkpoint.peer_downloader import PeerSource
from swarm.checkpoint.peer_model import open_from_peers, settled_manifest
from swarm.checkpoint.weight_store import Store
from swarm.dht.board import Board
from swarm.dht.dht_board import DhtBoard
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.errors import BadInput, BadInvite, BadModel, SwarmError, Unreachable
from swarm.hardware import Device
from swarm.invites import Invite, invite_text
from swarm.model_spec import BUILT_IN, ModelSpec
from swarm.p2p.addresses import own_multiaddrs
from swarm.p2p.channel import Channel
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import Network, P2PDaemon, open_p2p
from swarm.records import PENDING, Capability, Manifest
from swarm.state_folder import (
    FOLDER_MARK,
    LAST_INVITE,
    local_name,
    shared_name,
    title_of,
    write_private,
)
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.network_clock import CLOCK
from swarm.wire.messages import Message

logger = logging.getLogger(__name__)

KEPT_MANIFEST = "manifest"  # the founder's word, in a node's folder
KNOWN_SECONDS = 5.0  # for a swarm to be found on its own board
LOOK_SECONDS = 0.5
NODES_CAP = 32  # nodes of one user on one machine

OnAnswer = Callable[[int, Message], None]


@dataclass(frozen=True, slots=True)
class Served:
    """The model that this node serves."""

    name: str
    folder: Path
    spec: ModelSpec
    store: Store | None = None  # fills the folder, if it is not whole
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


@dataclass(frozen=True, slots=True)
class Links:
    """The open ways to the outside."""

    process: P2PDaemon
    board: Board
    channel: Channel
    invite: Invite
    folder: Path  # this node's state
    addresses: tuple[str, ...]  # where others reach us
    identity: Identity
    manifests: ManifestKeeper
    last_swarm: str = ""  # which one commands without an invite asked before


@dataclass(frozen=True, slots=True)
class Equipment:
    """A device with its worker."""

    device: Device
    worker: WorkerProcess


def invite_of(config: NodeConfig) -> Invite | None:
    """The invite to join by, or None for a founder; raises BadInvite."""
    if config.founds:
        return None
    text = config.invite
    if not text:
        try:
            text = (config.state / LAST_INVITE).read_text(errors="replace")
        except OSError as error:
            raise BadInvite(
                "No invite is given, and none is remembered.",
                "Pass --join INVITE, set SWARM_INVITE, or start a swarm with --host.",
            ) from error
    return Invite.parse(invite_text(text))


def read_model(name: str, revision: str = "", served_name: str = "") -> Served:
    """Find a model and its numbers; raises BadInput, BadModel, Unreachable."""
    folder, store = open_model(name, revision=revision)
    is_folder = name != BUILT_IN and Path(name).expanduser().is_dir()
    if served_name and not is_folder:
        raise BadInput(
            f"--served-model-name: others find {name} by this name only.", "Leave it out."
        )
    shared = shared_name(folder, served_name) if is_folder else name
    commit = folder.name if is_hub_id(name) and not is_folder else ""
    if name != BUILT_IN:
        require_complete(folder, title_of(shared))
    spec = read_spec(folder, title_of(shared))
    return Served(shared, folder, spec, store, commit, hub_weights_of(folder) if commit else "")


def read_founded(config: NodeConfig) -> Served:
    """The model that a founder was asked to serve; raises BadInput, BadModel, Unreachable."""
    return read_model(config.model, served_name=config.served_name)


async def find_served(name: str, links: Links, state: Path) -> Served:
    """The swarm's model: from this machine, the hub, or the peers; raises BadModel, Unreachable.

    Whatever lies here is held against the founder's word, its weights as well.
    """
    manifest = await links.manifests.find(KNOWN_SECONDS)
    if manifest is None:
        raise Unreachable(
            "The host of this swarm is away, and no peer knows what it serves.",
            "Start again when the host is back.",
        )
    cause: SwarmError
    try:
        local = local_name(state, links.invite.swarm, name)
        served = await asyncio.to_thread(read_model, local, manifest.revision)
        return replace(await _checked(served, manifest, links), name=name)
    except (BadModel, Unreachable) as error:
        cause = error
    find = links.manifests.find
    folder, store = await open_from_peers(links.channel, links.board, cause, find)
    await asyncio.to_thread(require_complete, folder, title_of(name))
    return Served(name, folder, await asyncio.to_thread(read_spec, folder, title_of(name)), store)


async def _checked(served: Served, manifest: Manifest, links: Links) -> Served:
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
    settled = await settled_manifest(links.manifests.find, cause)
    source = PeerSource(links.channel, links.board, settled.inventory)
    return replace(served, store=await FolderCheck.open(served.folder, source))


@asynccontextmanager
async def open_links(config: NodeConfig, founded: Manifest | None) -> AsyncIterator[Links]:
    """Hold the state folder, a daemon, the board and the channel; raises BadInput, Unreachable.

    A founder says what its swarm serves before anybody can ask.
    """
    invite = invite_of(config)
    async with AsyncExitStack() as stack:
        identity, folder = open_identity(config.state)
        stack.callback(identity.close)
        process = await open_p2p(identity, network_of(config, invite))
        stack.push_async_callback(process.close)
        swarm = invite.swarm if invite else swarm_id(config.swarm, identity.peer)
        key = invite.key if invite else config.key
        known = invite.addresses if invite else ()
        board = await DhtBoard.open(process, swarm, identity, key=key, initial_peers=known)
        stack.push_async_callback(board.close)
        if founded:
            await board.publish(founded)
        else:
            await _require_swarm(board, swarm)
        channel = await LibP2PChannel.open(process, swarm, key)
        stack.push_async_callback(channel.close)
        manifests = ManifestKeeper(channel, board, swarm, path=folder / KEPT_MANIFEST)
        manifests.hand_on()
        seen = (*await process.addresses(), *_seen_from_here(config, identity.peer))
        own = tuple(dict.fromkeys(seen))[:8]
        if not own:
            raise Unreachable(
                "The network daemon listens at no address of this machine.",
                "Bring a network interface up, or name an address of yours with --listen.",
            )
        model = founded.model if founded else invite.model if invite else ""
        fresh = Invite((*own, *known)[:8], swarm, model, key)
        before = _last_swarm(config.state)
        _remember(fresh, config.state / LAST_INVITE)
        yield Links(process, board, channel, fresh, folder, own, identity, manifests, before)


def _seen_from_here(config: NodeConfig, peer: str) -> tuple[str, ...]:
    """Our own addresses beside those announced: few routers let us reach ourselves by those."""
    if not config.announce:
        return ()
    return tuple(f"{each}/p2p/{peer}" for each in own_multiaddrs(config.listen, config.port))


def _remember(invite: Invite, path: Path) -> None:
    try:
        write_private(path, invite.encode().encode())
    except OSError as error:
        raise BadInput(
            f"Cannot write {path}: {error.strerror or error}.",
            "Make room there, or choose another folder with --state.",
        ) from error


def _last_swarm(state: Path) -> str:
    """Which swarm commands without an invite ask so far, if any."""
    try:
        return Invite.parse((state / LAST_INVITE).read_text(errors="replace")).swarm
    except (OSError, BadInvite):
        return ""


def manifest_of(served: Served, inventory: str = PENDING) -> Manifest:
    """The founder's word on what its swarm serves, and what peers may hand out of it."""
    known = inventory if served.is_for_all else ""
    digest, now = served.spec.digest, CLOCK.now()
    return Manifest(served.name, digest, "f32", now, served.revision, known, served.weights)


async def _require_swarm(board: Board, swarm: str) -> None:
    """Raise BadInvite if the peers in the invite have never heard of its swarm."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while not (len(await board.read(Manifest)) or len(await board.read(Capability))):
        if time.monotonic() > deadline:
            raise BadInvite(
                f"The peers in the invite know no swarm {swarm}.", "Ask for a fresh invite."
            )
        await asyncio.sleep(LOOK_SECONDS)


def open_identity(state: Path) -> tuple[Identity, Path]:
    """The first node folder that no other process uses; raises BadInput."""
    refused: BadInput | None = None
    for number in range(1, NODES_CAP + 1):
        folder = state / f"node-{number}"
        try:
            return Identity.load_or_create(folder), folder
        except BadInput as error:
            if "in use" not in error.cause:
                raise
            refused = error
    raise refused or BadInput(f"{state} has no free node folder.")


def network_of(config: NodeConfig, invite: Invite | None) -> Network:
    """How this node stands in the network."""
    return Network(
        host=config.listen,
        port=config.port,
        announce=config.announce,
        initial_peers=invite.addresses if invite else (),
    )


def detected_devices(config: NodeConfig) -> tuple[list[Detected], list[str]]:
    """The devices of this machine, and what each computes in; raises BadInput."""
    detected = detect(config.memory_bytes, config.memory_share)
    if config.quant and any(found.kind != "cpu" for found in detected):
        raise BadInput(f"--quant {config.quant} runs on CPUs only.", "Leave it out here.")
    return detected, [chosen_dtype(found, config.dtype, config.quant) for found in detected]


@asynccontextmanager
async def open_equipment(
    config: NodeConfig, served: Served, on_answer: OnAnswer
) -> AsyncIterator[list[Equipment]]:
    """Hold a measured worker for every device of this machine; raises BadInput, BadModel."""
    detected, dtypes = detected_devices(config)
    async with AsyncExitStack() as stack:
        workers = [await _open_worker(config, found, on_answer, stack) for found in detected]
        model = served.spec.to_json()
        measured = await asyncio.gather(
            *(
                worker.measure(Measure(model, dtype, config.quant, str(served.folder)))
                for worker, dtype in zip(workers, dtypes, strict=True)
            )
        )
        yield [
            Equipment(_device_of(found, dtype, speed), worker)
            for found, dtype, speed, worker in zip(detected, dtypes, measured, workers, strict=True)
        ]


async def _open_worker(
    config: NodeConfig, found: Detected, on_answer: OnAnswer, stack: AsyncExitStack
) -> WorkerProcess:
    place = WorkerPlace(found.torch_name, config.threads, config.slowdown, config.sessions_per_step)
    worker = await WorkerProcess.spawn(place, lambda answer: on_answer(found.index, answer))
    stack.push_async_callback(worker.close)
    return worker


def _device_of(found: Detected, dtype: str, speed: Measured) -> Device:
    return Device(
        index=found.index,
        kind=found.kind,
        name=found.name,
        memory_bytes=found.memory_bytes,
        bytes_per_second=speed.bytes_per_second,
        flops=speed.flops,
        weight_bytes=speed.weight_bytes,
        dtype=dtype,
    )
