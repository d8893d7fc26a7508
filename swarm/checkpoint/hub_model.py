"""A model on the hub: its small files here, its weights as headers, to be filled where wanted."""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from swarm.checkpoint.hub_downloader import HubDownloader
from swarm.checkpoint.hub_errors import explained
from swarm.checkpoint.safetensors_headers import (
    INDEX,
    LONE_FILE,
    files_to_load,
    indexed_files,
    is_metadata_file,
    no_weights,
    weight_files,
)
from swarm.checkpoint.sparse_file import SparseFile
from swarm.checkpoint.weight_store import WeightStore
from swarm.errors import BadModel

logger = logging.getLogger(__name__)

DONE = "done"  # in the folder once all metadata files and headers are there
AGAIN_SECONDS = 1.0  # before the hub is taken for out of reach
HEADERS_AT_A_TIME = 8
CACHE = "swarm"  # below HF_HOME
HASH = re.compile(r"[0-9a-f]{40,64}")  # of git, or of git-lfs


def open_on_hub(repo: str, revision: str = "") -> tuple[Path, WeightStore | None]:
    """The folder of a model, and the store that fills it unless it is whole.

    Fetches small files and the weights' headers, no weights; raises BadModel, Unreachable.
    """
    with explained(repo):
        away = not _is_reachable(hf_hub_url(repo, "config.json", revision=revision or None))
        config = hf_hub_download(
            repo, "config.json", revision=revision or None, local_files_only=away
        )
        snapshot = Path(config).parent
        folder = Path(constants.HF_HOME) / CACHE / _folder_name(repo) / snapshot.name
        store = WeightStore(folder, HubDownloader(repo, snapshot.name))
        if not (folder / DONE).is_file():
            try:
                names = _names(repo, snapshot.name)
            except (httpx2.TransportError, OfflineModeIsEnabled):
                if _is_whole(snapshot):
                    return snapshot, None
                raise
            for name in filter(is_metadata_file, names):
                hf_hub_download(repo, name, revision=snapshot.name)
            files = _weight_files(repo, snapshot, names)
            if all((snapshot / name).is_file() for name in files):
                return snapshot, None
            _populate(store, snapshot, filter(is_metadata_file, names), files)
    logger.info("found %s in %s", repo, folder)
    return folder, store


def hub_weights_of(folder: Path) -> str:
    """A digest over what the hub says that a model's weight files hold; "" if it is not known.

    The hub names a large file by the SHA-256 of its bytes: in the map of a thin file, or as the
    name of the blob that a whole one is a link to.
    """
    facts = []
    for path in weight_files(folder):
        sparse = SparseFile.again(path)
        tag = sparse.facts.etag if sparse else path.resolve().name if path.is_symlink() else ""
        if not HASH.fullmatch(tag):
            return ""
        facts.append([path.name, path.stat().st_size, tag])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_reachable(url: str) -> bool:
    """Whether the hub answers at all: huggingface_hub would find out noisily, in half a minute."""
    for pause in (AGAIN_SECONDS, 0.0):
        try:
            get_hf_file_metadata(url)
        except OfflineModeIsEnabled:
            return False
        except httpx2.TransportError:
            time.sleep(pause)
            continue
        except (HfHubHTTPError, FileMetadataError):
            return True  # it does, if not as we like
        return True
    return False


def _folder_name(repo: str) -> str:
    return repo_folder_name(repo_id=repo, repo_type="model")


def _names(repo: str, commit: str) -> list[str]:
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    found = HfApi().model_info(repo, revision=commit, timeout=seconds)
    return [each.rfilename for each in found.siblings or ()]


def _weight_files(repo: str, snapshot: Path, names: list[str]) -> list[str]:
    if INDEX in names and LONE_FILE not in names:
        files = indexed_files(snapshot / INDEX)
        if absent := set(files) - set(names):
            raise BadModel(f"{repo} lacks {min(absent)} on the hub.", "Choose another model.")
        return files
    files = files_to_load([n for n in names if _is_weights(n)], f"{repo} on the hub")
    if not files:
        raise no_weights(repo, has_pickles=any(n.endswith((".bin", ".pt", ".pth")) for n in names))
    return files


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


def _is_whole(snapshot: Path) -> bool:
    index = snapshot / INDEX
    if (snapshot / LONE_FILE).is_file() or not index.is_file():
        return (snapshot / LONE_FILE).is_file()
    return all((snapshot / name).is_file() for name in indexed_files(index))


def _populate(
    store: WeightStore, snapshot: Path, metadata_files: Iterable[str], files: Iterable[str]
) -> None:
    """Put small files and headers into the store's folder; weights that are here are linked."""
    store.folder.mkdir(parents=True, exist_ok=True)
    for name in metadata_files:
        shutil.copyfile(snapshot / name, store.folder / name)
    absent = [name for name in files if not _linked(snapshot / name, store.folder / name)]
    source = store.source
    assert isinstance(source, HubDownloader)

    def begin(name: str) -> None:
        store.read_header(SparseFile(store.folder / name, source.facts(name)))

    with ThreadPoolExecutor(HEADERS_AT_A_TIME, "header") as pool:
        list(pool.map(begin, absent))
    (store.folder / DONE).touch()


def _linked(whole: Path, link: Path) -> bool:
    if not whole.is_file() or SparseFile.again(link):
        return False
    link.unlink(missing_ok=True)
    link.symlink_to(whole.resolve())
    return True
