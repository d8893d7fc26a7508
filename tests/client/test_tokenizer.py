"""Tokenizers: the model's own, bytes where there is none, and the ids that end an answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.tokenizer import ByteTokenizer, ModelTokenizer, read_stop_ids, read_tokenizer
from swarm.checkpoint import find_model
from swarm.errors import BadInput, BadModel
from swarm.model import BUILT_IN
from tests.client.scripted import SPEC

CHAT = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def built_in() -> ModelTokenizer:
    return ModelTokenizer(find_model(BUILT_IN))


def test_the_built_in_tokenizer_reads_back_what_it_wrote(built_in: ModelTokenizer) -> None:
    text = "Once upon a time, naïve 😀 owls"
    assert built_in.text_of(built_in.ids_of_text(text)) == text


def test_a_chat_goes_through_the_template_up_to_the_assistants_turn(
    built_in: ModelTokenizer,
) -> None:
    ids = built_in.ids_of_messages(CHAT)
    assert ids == built_in.ids_of_text("<|begin|><|user|>Hello!<|end|><|assistant|>")
    assert built_in.text_of(ids) == "Hello!", "special tokens are left out"


@given(st.text())
def test_bytes_stand_for_text_where_there_is_no_tokenizer(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.text_of(tokenizer.ids_of_text(text)) == text
    assert tokenizer.text_of([300, *tokenizer.ids_of_text(text), 299]) == text


def test_a_folder_without_a_tokenizer_is_read_as_bytes_and_says_so(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tmp_path, SPEC)
    assert tokenizer.ids_of_text("hé") == list("hé".encode())
    assert "raw UTF-8 bytes" in tokenizer.notice
    with pytest.raises(BadInput, match="chat template"):
        tokenizer.ids_of_messages(CHAT)


def test_too_few_ids_for_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="255 ids"):
        read_tokenizer(tmp_path, replace(SPEC, vocab=255))


def test_a_broken_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match="cannot be read"):
        read_tokenizer(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 2}, (5, 6)),
        ({"eos_token_id": 5}, {"eos_token_id": 2}, (5,)),
        ({}, {"eos_token_id": 2}, ()),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": None}, ()),
        (None, {"text_config": {"eos_token_id": 3}}, (3,)),
    ],
)
def test_stop_ids_are_those_that_transformers_would_stop_at(
    tmp_path: Path,
    generation: dict[str, object] | None,
    config: dict[str, object],
    expected: object,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_stop_ids(tmp_path) == expected


@pytest.mark.parametrize(
    ("data", "cause"),
    [(b"[]", "not a JSON map"), (b"{", "not valid JSON"), (b"\xff", "not valid JSON")],
)
def test_broken_settings_are_refused(tmp_path: Path, data: bytes, cause: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(BadModel, match=cause):
        read_stop_ids(tmp_path)
