"""Models of the hub: only what is asked for travels, it is resumed, and every fault is told."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import save_file

from client.request import LocalModel
from swarm.checkpoint import hub_downloader
from swarm.checkpoint import hub_model as hub_module
from swarm.checkpoint.byte_ranges import ByteRanges, size_of
from swarm.checkpoint.folder import find_model, open_model, read_spec
from swarm.checkpoint.hub_model import hub_weights_of
from swarm.checkpoint.safetensors_headers import POINTER, read_headers, weight_files
from swarm.checkpoint.sparse_file import missing, present
from swarm.checkpoint.weight_store import FetchProgress, WeightStore
from swarm.errors import BadModel, EngineError, SwarmError, Unreachable
from tests.swarm.checkpoint.hub_server import COMMIT, Hub, hub_of

NAME = "someone/model"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 300,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "eos_token_id": 7,
}
FILE = "model.safetensors"


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (300, 32)}
    return {
        f"model.layers.{layer}.{name}.weight": torch.randn(*shape, generator=generator)
        for layer in range(4)
        for name, shape in shapes.items()
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The repository: one weight file, a config, and things that nobody here needs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    (folder / "README.md").write_text("words")
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    save_file(tensors(), folder / FILE)
    return folder


@pytest.fixture
def hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one, and an empty cache."""
    with hub_of(files) as hub:
        home = tmp_path / "home"
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_downloader, "PAUSE_SECONDS", 0.005)
        yield hub
        close_session()


def ranges_of_layer(folder: Path, layer: int) -> ByteRanges:
    return tuple(
        (header.start, header.end)
        for header in read_headers(folder)
        if f"layers.{layer}." in header.name
    )


def store_of(name: str = NAME) -> WeightStore:
    _, store = open_model(name)
    assert store is not None
    return store


def ensure(store: WeightStore, layer: int) -> int:
    return store.ensure({FILE: ranges_of_layer(store.folder, layer)}, FetchProgress())


def tensor_at(path: Path, name: str) -> bytes:
    header = next(each for each in read_headers(path.parent) if each.name == name)
    return path.read_bytes()[header.start : header.end]


def test_a_client_fetches_metadata_and_headers_but_no_weights(hub: Hub, files: Path) -> None:
    model = LocalModel.read(NAME)
    assert model.spec.digest == read_spec(files, NAME).digest
    assert model.stop_ids == (9,)
    header_end = min(header.start for header in read_headers(files))
    assert hub.weight_bytes == header_end
    fetched = {each.file for each in hub.asked}
    assert fetched == {"config.json", "generation_config.json", FILE}


def test_only_the_wanted_ranges_travel_and_they_are_the_right_bytes(hub: Hub, files: Path) -> None:
    store = store_of()
    before = hub.weight_bytes
    wanted = ranges_of_layer(files, 2)
    assert ensure(store, 2) == size_of(wanted) == hub.weight_bytes - before
    path = store.folder / FILE
    for name, tensor in tensors().items():
        expected = tensor.numpy().tobytes() if "layers.2." in name else bytes(tensor.nbytes)
        assert tensor_at(path, name) == expected
    assert missing(path, wanted) == ()
    assert path.stat().st_size == (files / FILE).stat().st_size


def test_what_is_here_is_not_asked_for_again_even_without_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(store_of(), 1)
    count = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ensure(store_of(), 1) == 0
    with pytest.raises(BadModel, match="cannot be reached"):
        ensure(store_of(), 3)
    assert len(hub.asked) == count


def test_several_files_are_begun_by_the_index(hub: Hub, files: Path) -> None:
    whole = tensors()
    names = sorted(whole)
    (files / FILE).unlink()
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, chosen in parts.items():
        save_file({name: whole[name] for name in chosen}, files / file)
    index = {name: file for file, chosen in parts.items() for name in chosen}
    (files / f"{FILE}.index.json").write_text(json.dumps({"weight_map": index}))
    folder = find_model(NAME)
    assert [each.name for each in read_headers(folder)] == names
    assert read_spec(folder, NAME).digest == read_spec(files, NAME).digest


def test_a_download_goes_on_where_the_server_cut_it_off(hub: Hub, files: Path) -> None:
    store = store_of()
    before = hub.weight_bytes
    hub.cut_after = [1000, 5000, 1]
    fetched = ensure(store, 0)
    assert hub.weight_bytes - before == fetched
    tensor = tensors()["model.layers.0.mlp.up_proj.weight"]
    assert tensor_at(store.folder / FILE, "model.layers.0.mlp.up_proj.weight") == (
        tensor.numpy().tobytes()
    )


def test_a_server_that_always_cuts_is_told_as_such_and_what_came_is_kept(hub: Hub) -> None:
    store = store_of()
    ((low, high), *_) = ranges_of_layer(store.folder, 0)
    hub.cut_after = [1500] + [0] * 20
    with pytest.raises(Unreachable, match="hub does not hand over") as caught:
        store.ensure({FILE: ((low, high),)}, FetchProgress())
    assert "what came is kept" in caught.value.next_step
    assert missing(store.folder / FILE, ((low, high),)) == ((low + 1500, high),)
    hub.cut_after = []
    before = hub.weight_bytes
    assert store.ensure({FILE: ((low, high),)}, FetchProgress()) == high - low - 1500
    assert hub.weight_bytes - before == high - low - 1500


def test_a_stalled_answer_has_a_deadline_and_is_asked_for_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of()
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.stalls = 1
    assert ensure(store, 3) > 0
    hub.stalls = 100
    with pytest.raises(Unreachable):
        ensure(store, 0)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_refusal_is_waited_out(hub: Hub, code: int) -> None:
    store = store_of()
    hub.refusals = [code, code]
    assert ensure(store, 1) > 0


def test_a_signed_address_that_expired_is_asked_for_anew(hub: Hub) -> None:
    store = store_of()
    ensure(store, 0)
    hub.expired = 1
    assert ensure(store, 1) > 0


def test_files_without_redirects_are_read_in_ranges_too(hub: Hub) -> None:
    hub.redirects = False
    before = hub.weight_bytes
    store = store_of()
    assert ensure(store, 1) < hub.weight_bytes - before < (hub.folder / FILE).stat().st_size


def test_a_server_without_ranges_gives_a_header_without_the_rest(hub: Hub) -> None:
    hub.knows_ranges = False
    store = store_of()
    wanted = ranges_of_layer(store.folder, 1)
    assert ensure(store, 1) == size_of(wanted)
    name = "model.layers.1.mlp.up_proj.weight"
    assert tensor_at(store.folder / FILE, name) == tensors()[name].numpy().tobytes()


def test_far_into_a_file_without_ranges_the_whole_file_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.knows_ranges = False
    monkeypatch.setattr(hub_downloader, "SKIP_BYTES", 100)
    store = store_of()
    ensure(store, 3)
    name = "model.layers.3.mlp.up_proj.weight"
    assert tensor_at(store.folder / FILE, name) == tensors()[name].numpy().tobytes()


@pytest.mark.parametrize("redirects", [True, False])
def test_a_file_that_changes_meanwhile_is_refused(hub: Hub, redirects: bool) -> None:
    hub.redirects = redirects
    store = store_of()
    ensure(store, 0)
    hub.salt = "new"
    with pytest.raises(BadModel, match="changed on the hub"):
        ensure(store, 1)


def test_bytes_of_another_version_never_join_those_here(hub: Hub, files: Path) -> None:
    store = store_of()
    ensure(store, 0)
    hub.salt = "new"
    with pytest.raises(BadModel, match="changed on the hub"):
        ensure(store_of(), 1)
    assert size_of(present(store.folder / FILE)) < (files / FILE).stat().st_size


def test_a_full_copy_of_the_hubs_own_cache_is_taken_as_it_is(hub: Hub, files: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("config.json", FILE):
        hf_hub_download(NAME, name)
    before = hub.weight_bytes
    folder, store = open_model(NAME)
    assert store is None
    assert read_spec(folder, NAME).digest == read_spec(files, NAME).digest
    assert hub.weight_bytes == before


def test_a_gated_model_needs_the_right_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(BadModel, match="gated") as caught:
        open_model(NAME)
    assert "HF_TOKEN" in caught.value.next_step
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(BadModel, match="gated"):
        open_model(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert ensure(store_of(), 0) > 0
    assert all(not each.token for each in hub.asked if each.file == FILE)  # the store of files


def without(name: str) -> Any:
    return lambda hub: (hub.folder / name).unlink()


def rename(old: str, new: str) -> Any:
    return lambda hub: (hub.folder / old).rename(hub.folder / new)


def parts_with_index(index: bytes) -> Any:
    def change(hub: Hub) -> None:
        rename(FILE, "model-00001-of-00001.safetensors")(hub)
        (hub.folder / f"{FILE}.index.json").write_bytes(index)

    return change


def test_the_hubs_hashes_tell_two_copies_apart(hub: Hub, files: Path) -> None:
    folder, store = open_model(NAME)
    assert store is not None
    thin = hub_weights_of(folder)
    store.ensure({FILE: ((0, (files / FILE).stat().st_size),)}, FetchProgress())
    assert len(thin) == 64
    assert hub_weights_of(folder) == thin
    link = files.parent / "linked"
    link.mkdir()
    (files.parent / hub.tag(FILE)).write_bytes((files / FILE).read_bytes())
    (link / FILE).symlink_to(files.parent / hub.tag(FILE))
    assert hub_weights_of(link) == thin
    (link / FILE).unlink()
    (files.parent / ("0" * 64)).write_bytes((files / FILE).read_bytes())
    (link / FILE).symlink_to(files.parent / ("0" * 64))
    assert hub_weights_of(link) not in ("", thin)
    assert hub_weights_of(files) == ""


def test_of_a_repository_only_what_transformers_would_load_counts(hub: Hub, files: Path) -> None:
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        shutil.copyfile(files / FILE, files / name)
    stale = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (files / f"{FILE}.index.json").write_text(json.dumps(stale))
    folder = find_model(NAME)
    assert [path.name for path in weight_files(folder)] == [FILE]
    assert not (folder / "consolidated.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("someone/unknown", None, "neither built in, nor a folder, nor found on the hub"),
        ("not a name!", None, "neither built in, nor a folder, nor found on the hub"),
        (NAME, without("config.json"), "lacks a file"),
        (NAME, without(FILE), r"only pickled weights \(.bin\)"),
        (NAME, lambda hub: (hub.folder / FILE).write_bytes(b"\xff" * 40), "header"),
        (NAME, lambda hub: (hub.folder / FILE).write_bytes(b"123"), "header|changed"),
        (NAME, parts_with_index(b"{}"), "weight_map"),
        (NAME, parts_with_index(b'{"weight_map": {"a": "x.safetensors"}}'), "lacks x.safetensors"),
        (NAME, rename(FILE, "model-00001-of-00002.safetensors"), "lacks model-00002-of-00002"),
        (NAME, lambda hub: (hub.folder / FILE).write_bytes(POINTER + b"\n"), "git-lfs"),
    ],
)
def test_bad_repositories_are_refused_with_cause_and_next_step(
    hub: Hub, name: str, change: Any, cause: str
) -> None:
    if change:
        change(hub)
    with pytest.raises(BadModel, match=cause) as caught:
        find_model(name)
    assert caught.value.next_step


def test_an_unknown_revision_is_refused_and_a_commit_is_found(hub: Hub) -> None:
    assert find_model(NAME, revision=COMMIT).name == COMMIT
    with pytest.raises(BadModel, match="no such revision"):
        find_model(NAME, revision="f" * 40)


def test_a_hub_that_is_down_is_told_as_such(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_module, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(SwarmError, match="cannot be reached") as caught:
        find_model(NAME)
    assert caught.value.exit_code == 2


def test_a_hub_that_went_down_costs_nothing_where_all_is_here(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(store_of(), 2)
    monkeypatch.setattr(hub_module, "AGAIN_SECONDS", 0.0)
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert ensure(store_of(), 2) == 0
    with pytest.raises(Unreachable, match="does not hand over"):
        ensure(store_of(), 3)


def test_a_full_disk_is_refused_before_anything_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of()
    before = len(hub.asked)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(EngineError, match="do not fit") as caught:
        ensure(store, 0)
    assert "HF_HOME" in caught.value.next_step
    assert len(hub.asked) == before


def test_a_fetch_that_nobody_wants_any_more_ends(hub: Hub) -> None:
    store, progress = store_of(), FetchProgress()
    progress.stop()
    with pytest.raises(EngineError, match="other plans"):
        store.ensure({FILE: ranges_of_layer(store.folder, 0)}, progress)
