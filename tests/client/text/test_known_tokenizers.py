"""A tokenizer that was read once is read again without transformers, and reads just the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from client.text import known_tokenizers, tokenizer
from client.text.known_tokenizers import KEPT, KnownTokenizer
from client.text.tokenizer import ModelTokenizer
from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN
from tests.client.text.small_tokenizers import CHATML, byte_level, sentencepiece, word_piece

CHAT = [{"role": "user", "content": "Hello!"}]
TEXTS = st.text(st.sampled_from("abt hewrsOncupio .,'\n\té漢👍🏽<>|s_\u200d"), max_size=40)
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has read no tokenizer yet."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "swarm" / known_tokenizers.FOLDER


def built_in(_folder: Path) -> Path:
    return find_model(BUILT_IN)


def without_transformers(folder: Path) -> ModelTokenizer:
    found = ModelTokenizer(folder)
    assert isinstance(found._inner, KnownTokenizer)
    return found


@pytest.mark.parametrize("make", [built_in, sentencepiece, byte_level, word_piece])
def test_a_known_tokenizer_reads_and_writes_as_transformers_does(
    make: Make, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    theirs, ours = ModelTokenizer(folder), without_transformers(folder)
    assert not isinstance(theirs._inner, KnownTokenizer)
    assert ours.end_of_turn == theirs.end_of_turn

    @given(TEXTS)
    def same(text: str) -> None:
        ids = theirs.ids_of_text(text)
        assert ours.ids_of_text(text) == ids
        assert ours._encoded(text, is_whole=True) == theirs._encoded(text, is_whole=True)
        assert ours.text_of(ids) == theirs.text_of(ids)
        assert ours.text_of(ids[1:]) == theirs.text_of(ids[1:])

    same()
    assert ours.ids_of_text("</s><s>") == theirs.ids_of_text("</s><s>")


def test_a_chat_asks_transformers_before_its_template_is_bounded(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model", chat_template=CHATML)
    theirs, ours = ModelTokenizer(folder), without_transformers(folder)
    assert ours.ids_of_messages(CHAT) == theirs.ids_of_messages(CHAT)


def test_a_tokenizer_that_cuts_or_fills_up_is_known_without_that(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model")
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    path.write_text(json.dumps(values))
    theirs, ours = ModelTokenizer(folder), without_transformers(folder)
    assert ours.ids_of_text("Once") == theirs.ids_of_text("Once")
    assert len(ours.ids_of_text("Once")) == 4


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_another_content_is_another_tokenizer(name: str, tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model")
    ModelTokenizer(folder)
    path = folder / name
    path.write_text(path.read_text() + " " if path.exists() else "{}")
    assert not isinstance(ModelTokenizer(folder)._inner, KnownTokenizer)


def test_a_tokenizer_that_does_something_of_its_own_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [
        word_piece(tmp_path / "cleans", clean_up_tokenization_spaces=True),
        byte_level(tmp_path / "splits", split_special_tokens=True),
        byte_level(tmp_path / "its own"),
    ]
    load = tokenizer._load

    def of_its_own(folder: Path) -> Any:
        loaded = load(folder)
        if folder.name == "its own":
            kind = type(loaded)
            loaded.__class__ = type("Own", (kind,), {"_decode": lambda *_a, **_o: "?"})
        return loaded

    monkeypatch.setattr(tokenizer, "_load", of_its_own)
    for folder in folders:
        ModelTokenizer(folder)
        assert not isinstance(ModelTokenizer(folder)._inner, KnownTokenizer), folder.name


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"backend": "?"}', None])
def test_what_is_remembered_and_broken_is_read_anew(
    data: bytes | None, tmp_path: Path, cache: Path
) -> None:
    folder = byte_level(tmp_path / "model")
    theirs = ModelTokenizer(folder)
    (path,) = cache.glob("*.json")
    broken = json.dumps(json.loads(path.read_bytes()) | {"backend": "{}"}).encode()
    path.write_bytes(broken if data is None else data)
    again = ModelTokenizer(folder)
    assert not isinstance(again._inner, KnownTokenizer)
    assert again.ids_of_text("Once") == theirs.ids_of_text("Once")
    without_transformers(folder)


def test_where_nothing_can_be_kept_transformers_is_asked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> NoReturn:
        raise OSError("no space left on device")

    monkeypatch.setattr(known_tokenizers, "write_private", full)
    folder = byte_level(tmp_path / "model")
    for _ in range(2):
        assert ModelTokenizer(folder).ids_of_text("Once")


def test_only_so_many_are_kept_and_those_in_use_the_longest(tmp_path: Path, cache: Path) -> None:
    first = byte_level(tmp_path / "first")
    ModelTokenizer(first)
    for number in range(KEPT + 1):
        ModelTokenizer(byte_level(tmp_path / f"{number}", model_max_length=number + 5))
        without_transformers(first)
    assert len(list(cache.glob("*.json"))) == KEPT
