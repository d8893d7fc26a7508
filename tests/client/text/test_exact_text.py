"""Text as transformers gives it: prompt and answer read as one, whatever the tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from client.text.detokenizer import Detokenizer
from client.text.tokenizer import ModelTokenizer
from tests.client.text.small_tokenizers import byte_level, sentencepiece, word_piece

TEXTS = st.text(st.sampled_from("abt hewrsOncupio .,'\n\té漢👍🏽\u200d"), min_size=1, max_size=30)
Make = Callable[..., Path]


class Both:
    """A tokenizer as the client reads it, and as transformers does."""

    def __init__(self, folder: Path) -> None:
        self.ours = ModelTokenizer(folder)
        self.theirs: Any = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        """A text without a first token, as the middle of another."""
        return list(self.theirs(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.theirs.decode(ids, skip_special_tokens=True))

    def answer(self, prompt: list[int], new: list[int], *stop: str) -> Detokenizer:
        """The text of new ids behind a prompt, as it comes."""
        detokenizer = Detokenizer(self.ours.text_of, stop, prompt)
        pieces = [detokenizer.push([token]) for token in new] + [detokenizer.finish()]
        assert "".join(pieces) == detokenizer.text
        return detokenizer


@pytest.fixture(scope="module", params=[sentencepiece, byte_level, word_piece])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(request.param(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(sentencepiece(tmp_path_factory.mktemp("llama")))


@given(prompt=TEXTS, text=TEXTS)
def test_prompt_and_answer_read_as_transformers_decodes_them(
    both: Both, prompt: str, text: str
) -> None:
    asked, new = both.ours.ids_of_text(prompt), both.ids(text)
    known, whole = both.decode(asked), both.decode(asked + new)
    assert asked == both.theirs(prompt)["input_ids"]
    assert known + both.answer(asked, new).text == whole


@given(TEXTS)
def test_an_answer_behind_special_tokens_alone_is_decoded_as_a_whole(both: Both, text: str) -> None:
    specials, new = [1, 3, 1], both.ids(text)
    assert both.answer(specials, new).text == both.decode(specials + new)


def test_the_blank_between_prompt_and_answer_is_kept(llama: Both) -> None:
    prompt = llama.ours.ids_of_text("Once upon a time")
    new = [llama.theirs.convert_tokens_to_ids(piece) for piece in ("▁there", "▁was")]
    assert llama.answer(prompt, new).text == " there was"
    stopped = llama.answer(prompt, new, " there")
    assert (stopped.text, stopped.stopped) == ("", True)


@pytest.mark.parametrize("made", ["é", "漢", "👍"])
def test_a_character_begun_in_the_prompt_is_finished_in_the_answer(llama: Both, made: str) -> None:
    data = [llama.theirs.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in made.encode()]
    before = llama.ours.ids_of_text("x" * 20)
    detokenizer = llama.answer([*before, *data[:1]], [*data[1:], *llama.ids("y")])
    assert detokenizer.text == f"{made} y"


def test_a_prompt_of_bytes_alone_is_not_cut_within_a_character(llama: Both) -> None:
    prompt, new = llama.ours.ids_of_text("漢" * 50), llama.ids("漢字")[1:]
    assert llama.answer(prompt, new).text == "漢字"


@pytest.mark.parametrize("stop", ["python", "<|", "|", "tag"])
def test_the_name_of_a_special_token_is_no_text_to_stop_at(llama: Both, stop: str) -> None:
    tag = llama.theirs.convert_tokens_to_ids("<|python_tag|>")
    detokenizer = llama.answer([1], [tag, *llama.ids("was"), tag])
    assert not llama.answer([1], [tag, *llama.ids("was"), tag], stop).stopped
    assert detokenizer.text == "was"


def test_blanks_are_cleaned_up_only_where_transformers_does(tmp_path: Path) -> None:
    for make in (byte_level, word_piece):
        both = Both(make(tmp_path / make.__name__, clean_up_tokenization_spaces=True))
        ids = both.theirs("a b , c", add_special_tokens=False)["input_ids"]
        assert both.ours.text_of(ids) == both.decode(ids)
