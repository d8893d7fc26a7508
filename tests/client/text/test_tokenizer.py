"""Tokenizers: the model's own, bytes where there is none, and the ids that end an answer."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from client.text.tokenizer import ByteTokenizer, ModelTokenizer, read_stop_ids, read_tokenizer
from swarm.checkpoint.folder import find_model
from swarm.errors import BadInput, BadModel
from swarm.model_spec import BUILT_IN
from tests.client.scripted import SPEC
from tests.client.text.small_tokenizers import byte_level

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


@pytest.mark.parametrize("found", ["", "tekken.json"])
def test_a_folder_without_a_tokenizer_is_asked_in_ids_alone(tmp_path: Path, found: str) -> None:
    if found:
        (tmp_path / found).write_text("{}")
    tokenizer = read_tokenizer(tmp_path, SPEC)
    says = f"no tokenizer.*{found}.*raw_bytes"
    with pytest.raises(BadModel, match=says):
        tokenizer.ids_of_text("hé")
    with pytest.raises(BadModel, match=says):
        tokenizer.ids_of_messages(CHAT)
    assert tokenizer.text_of([1, 2]) == ""


def test_raw_bytes_are_there_for_whoever_asks(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tmp_path, SPEC, raw_bytes=True)
    assert tokenizer.ids_of_text("hé") == list("hé".encode())
    with pytest.raises(BadInput, match="chat template"):
        tokenizer.ids_of_messages(CHAT)


def test_too_few_ids_for_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="255 ids"):
        read_tokenizer(tmp_path, replace(SPEC, vocab=255), raw_bytes=True)


def damaged(folder: Path, how: str) -> None:
    """Spoil the files of a tokenizer in one of the ways seen in the wild."""
    path = byte_level(folder) / "tokenizer.json"
    values = json.loads(path.read_text())
    match how:
        case "newer":
            values["model"]["merges"] = [[["a", "b"], 3]]
        case "unknown type":
            values["pre_tokenizer"] = {"type": "Nonesuch"}
    text = {
        "half": path.read_text()[:999],
        "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        "empty": "",
    }
    path.write_text(text.get(how, json.dumps(values)))
    if how == "settings":
        (folder / "tokenizer_config.json").write_text("{'a': 1}")


@pytest.mark.parametrize("how", ["newer", "unknown type", "half", "pointer", "empty", "settings"])
def test_a_damaged_or_newer_tokenizer_is_refused_in_one_sentence(tmp_path: Path, how: str) -> None:
    damaged(tmp_path, how)
    with pytest.raises(
        BadModel, match=r"tokenizer in .* cannot be read: .*Fetch its files"
    ) as said:
        read_tokenizer(tmp_path, SPEC)
    assert str(said.value).isprintable()


def test_tokenizer_model_alone_is_read(tmp_path: Path) -> None:
    trained = io.BytesIO()
    SentencePieceTrainer.train(  # as Llama 2 and Mistral were first published
        sentence_iterator=iter(["Once upon a time there was a fox"] * 20),
        model_writer=trained,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_tokenizer(tmp_path, SPEC)
    ids = tokenizer.ids_of_text("Once upon a time")
    assert len(ids) > 2, "more than the first token"
    assert tokenizer.text_of(ids) == "Once upon a time"


def test_the_package_that_reads_tokenizer_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"?")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadModel, match="pip install sentencepiece"):
        read_tokenizer(tmp_path, SPEC)


def test_a_tokenizer_that_reads_nothing_of_a_prompt_is_refused(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(byte_level(tmp_path))
    assert tokenizer.ids_of_text("</s>") == [2]
    tokenizer._inner = lambda text, **_: {"input_ids": [1]}
    tokenizer._inner.all_special_ids, tokenizer._inner.unk_token_id = [1, 2], 0
    tokenizer._inner.all_special_tokens = ["<s>"]
    with pytest.raises(BadModel, match="reads nothing"):
        tokenizer.ids_of_text("hello")


def test_the_end_of_a_turn_is_the_tokenizers_own(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, eos_token="<|im_end|>")
    end = ModelTokenizer(folder).end_of_turn
    assert end == tuple(AutoTokenizer.from_pretrained(folder).encode("<|im_end|>"))


def test_broken_settings_of_a_generation_are_left_aside_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert read_stop_ids(tmp_path) == (7,)
    assert "generation_config.json is not valid JSON" in caplog.text


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
