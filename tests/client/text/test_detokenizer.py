"""Text as it comes: whole characters only, no trace of a stop string, nothing lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.text.detokenizer import Detokenizer
from client.text.tokenizer import ByteTokenizer

decode = ByteTokenizer().text_of


def pieces_of(text: str, stop: Sequence[str] = ()) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(decode, stop)
    pieces = [detokenizer.push([byte]) for byte in text.encode()]
    return [*pieces, detokenizer.finish()], detokenizer


@given(st.text())
def test_pieces_add_up_to_the_text(text: str) -> None:
    pieces, detokenizer = pieces_of(text)
    assert "".join(pieces) == detokenizer.text == text


def test_a_character_of_several_tokens_comes_whole() -> None:
    pieces, _ = pieces_of("é€😀!")
    assert [piece for piece in pieces if piece] == ["é", "€", "😀", "!"]


def test_an_unfinished_character_is_shown_as_such_at_the_end_only() -> None:
    detokenizer = Detokenizer(decode)
    assert detokenizer.push([0xF0, 0x9F]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_broken_character_in_the_middle_does_not_block_the_rest() -> None:
    detokenizer = Detokenizer(decode)
    assert detokenizer.push([0xFF]) + detokenizer.push([ord("a")]) == "\ufffda"


@pytest.mark.parametrize("text", ["one STOP two", "one STSTOP", "STOP", "oneSTOP" * 3])
def test_a_stop_string_never_shows_and_ends_the_text(text: str) -> None:
    pieces, detokenizer = pieces_of(text, ["STOP"])
    assert "".join(pieces) == text[: text.index("STOP")]
    assert detokenizer.stopped


def test_what_might_begin_a_stop_string_is_held_back_until_it_is_clear() -> None:
    detokenizer = Detokenizer(decode, ["\n\nUser:"])
    assert detokenizer.push(list(b"Hello\n")) == "Hello"
    assert detokenizer.push(list(b"\n")) == ""
    assert detokenizer.push(list(b"You")) == "\n\nYou"
    assert detokenizer.push(list(b"\n")) == ""
    assert detokenizer.finish() == "\n"
    assert not detokenizer.stopped


def test_the_earliest_of_several_stop_strings_counts() -> None:
    pieces, _ = pieces_of("one two three", ["three", "two"])
    assert "".join(pieces) == "one "


@given(st.text(alphabet="abé", max_size=30), st.text(alphabet="abé", min_size=1, max_size=3))
def test_streaming_cuts_where_reading_the_whole_would(text: str, stop: str) -> None:
    pieces, detokenizer = pieces_of(text, [stop])
    assert "".join(pieces) == text.split(stop)[0]
    assert detokenizer.stopped == (stop in text)


@given(st.text(alphabet="ab", max_size=20), st.integers(1, 4))
def test_pieces_do_not_depend_on_how_many_ids_come_at_once(text: str, size: int) -> None:
    data = text.encode()
    detokenizer = Detokenizer(decode, ["bb"])
    chunks = [list(data[at : at + size]) for at in range(0, len(data), size)]
    shown = "".join(detokenizer.push(chunk) for chunk in chunks) + detokenizer.finish()
    assert shown == text.split("bb")[0]
