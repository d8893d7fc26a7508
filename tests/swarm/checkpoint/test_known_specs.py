"""What was read of a model once is known again, by what its files say and never by its place."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from swarm.checkpoint.folder import find_model, read_spec
from swarm.checkpoint.known_specs import BUILT_IN_SPEC, recall_spec, remember_spec
from swarm.errors import BadModel
from swarm.model_spec import BUILT_IN, ModelSpec


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A model that is not built in: it says of itself that it was made for one token less."""
    folder = tmp_path / "model"
    shutil.copytree(find_model(BUILT_IN), folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_package_knows_its_own_model_as_transformers_reads_it() -> None:
    known = ModelSpec(**json.loads(BUILT_IN_SPEC.read_text()))
    assert known == read_spec(find_model(BUILT_IN), BUILT_IN)


def test_a_model_is_known_by_its_content_wherever_it_lies(another: Path, tmp_path: Path) -> None:
    assert recall_spec(another, "mine") is None
    spec = read_spec(another, "mine")
    remember_spec(spec)
    assert recall_spec(another, "mine") == spec
    copy = shutil.copytree(another, tmp_path / "copy")
    found = recall_spec(copy, "yours")
    assert found is not None
    assert (found.name, found.digest) == ("yours", spec.digest)


def test_other_content_in_the_same_place_is_not_known(another: Path) -> None:
    remember_spec(read_spec(another, "mine"))
    config = json.loads((another / "config.json").read_text())
    (another / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 99}))
    assert recall_spec(another, "mine") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"strange": 1}'])
def test_what_was_remembered_and_is_broken_is_read_anew(
    another: Path, home: Path, text: str
) -> None:
    remember_spec(read_spec(another, "mine"))
    (path,) = home.rglob("*.json")
    path.write_text(text)
    assert recall_spec(another, "mine") is None


def test_one_model_in_the_place_of_another_is_not_believed(another: Path, home: Path) -> None:
    remember_spec(read_spec(another, "mine"))
    (path,) = home.rglob("*.json")
    path.write_text(BUILT_IN_SPEC.read_text())
    assert recall_spec(another, "mine") is None


def test_a_full_or_read_only_disk_costs_the_memory_only(another: Path, home: Path) -> None:
    home.write_text("a file where the folder would be")
    remember_spec(read_spec(another, "mine"))
    assert recall_spec(another, "mine") is None


def test_a_folder_that_is_no_model_is_refused_before_anything_is_looked_up(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no config\.json"):
        recall_spec(tmp_path, "nothing")
