"""A model from the peers of its swarm: papers and headers at once, weights as they are wanted."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from huggingface_hub import constants

from swarm.checkpoint.chunk_index import Inventory
from swarm.checkpoint.hub_model import CACHE
from swarm.checkpoint.peer_downloader import PeerSource
from swarm.checkpoint.sparse_file import FileFacts, SparseFile
from swarm.checkpoint.weight_store import Store, Watch
from swarm.dht.board import Board
from swarm.errors import BadModel, SwarmError
from swarm.p2p.channel import Channel
from swarm.records import PENDING, Manifest

LOOK_SECONDS = 0.5  # between looks at the board
KNOWN_SECONDS = 3.0  # for a manifest to be found on it
PENDING_SECONDS = 600.0  # for the founder to digest its files

Find = Callable[[float], Awaitable[Manifest | None]]  # the founder's word, within some seconds


async def read_manifest(board: Board, seconds: float = 0.0) -> Manifest | None:
    """The founder's latest word, or None if there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = (await board.read(Manifest)).values()
        if found or time.monotonic() >= deadline:
            return max(found, key=lambda each: each.founded, default=None)
        await asyncio.sleep(LOOK_SECONDS)


async def settled_manifest(find: Find, cause: SwarmError) -> Manifest:
    """The founder's word once it says what peers may hand out; raises `cause`, BadModel."""
    deadline = time.monotonic() + PENDING_SECONDS
    while True:
        manifest = await find(KNOWN_SECONDS)
        if manifest is None or not manifest.inventory:
            raise cause
        if manifest.inventory != PENDING:
            return manifest
        if time.monotonic() > deadline:
            raise BadModel("The host is still reading its files.", "Try again later.") from cause
        await asyncio.sleep(LOOK_SECONDS)


async def open_from_peers(
    channel: Channel, board: Board, cause: SwarmError, find: Find | None = None
) -> tuple[Path, Store]:
    """The folder of the swarm's model and what fills it; `cause` says why it is not here.

    Raises `cause` if the founder does not let peers hand the model out, BadModel if none does.
    """
    manifest = await settled_manifest(find or (lambda s: read_manifest(board, s)), cause)
    source = PeerSource(channel, board, manifest.inventory)
    inventory = await source.read_inventory()
    folder = Path(constants.HF_HOME) / CACHE / "peers" / manifest.inventory
    store = Store(folder, source)
    await asyncio.to_thread(_furnish, store, inventory)
    return folder, store


def _furnish(store: Store, inventory: Inventory) -> None:
    for entry in inventory.entries:
        try:
            sparse = SparseFile(store.folder / entry.name, FileFacts(entry.size, entry.digest))
        except OSError as error:
            raise BadModel(f"{store.folder} cannot be used: {error}.", "Check HF_HOME.") from error
        if entry.is_weights:
            store.read_header(sparse)
        else:
            store.hold({entry.name: ((0, entry.size),)}, Watch())
