"""Formats in the field's dialects become a grammar, and what cannot be followed is refused."""

import json
from typing import Any

import pytest

from client.request import LocalModel, Options, Question
from client.response_format import grammar_of
from client.text.tokenizer import ByteTokenizer
from swarm.errors import BadInput, BadSampling
from swarm.wire.grammars import MOST_GRAMMAR_BYTES
from tests.client.scripted import SPEC

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
OPENAI = {"name": "output", "schema": SCHEMA, "strict": True}
ANY = ("json_schema", '{"type": "object"}')


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "json_schema", "json_schema": OPENAI},
        {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA}},
        {"type": "json_schema", "name": "output", "schema": SCHEMA, "strict": True},
        {"type": "json_object", "schema": SCHEMA},
    ],
)
def test_a_schema_is_taken_in_every_dialect_with_its_order(asked: dict[str, Any]) -> None:
    kind, text = grammar_of(asked, None)
    assert kind == "json_schema"
    assert list(json.loads(text)["properties"]) == ["b", "a"]
    assert json.loads(text) == SCHEMA


def test_any_object_and_plain_text_are_formats_too() -> None:
    assert grammar_of({"type": "json_object"}, None) == ANY
    assert grammar_of(None, {"json_object": True}) == ANY
    assert grammar_of({"type": "text"}, None) == grammar_of(None, None) == ()


def test_vllms_words_are_taken() -> None:
    assert grammar_of(None, {"regex": "a+"}) == ("regex", "a+")
    assert grammar_of(None, {"grammar": 'start: "a"'}) == ("lark", 'start: "a"')
    assert grammar_of(None, {"json": SCHEMA}) == grammar_of(None, {"json": json.dumps(SCHEMA)})
    found = grammar_of({"type": "text"}, {"choice": ["yes", 'say "no"\n']})
    assert found == ("lark", 'start: "yes" | "say \\"no\\"\\n"')


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"type": "xml"}, "text, json_object or json_schema"),
        ({"type": "json_schema"}, "no schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "no schema"),
        ("json", "text, json_object or json_schema"),
        ({"type": "json_object", "schema": {"type": "nonsense"}}, "Invalid type"),
        ({"type": "json_object", "schema": {"uniqueItems": True}}, "uniqueItems"),
        ({"type": "json_object", "schema": {"const": object()}}, "no JSON"),
        ({"type": "json_object", "schema": {"const": float("nan")}}, "no JSON"),
        ({"type": "json_object", "schema": {"const": "x" * MOST_GRAMMAR_BYTES}}, "32768 bytes"),
    ],
)
def test_a_format_that_cannot_be_followed_is_refused_with_the_cause(asked: Any, why: str) -> None:
    with pytest.raises(BadSampling, match=f"response_format.*{why}") as caught:
        grammar_of(asked, None)
    assert caught.value.option == "response_format"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "must have one of"),
        ({"regex": "a", "choice": ["b"]}, "must have one of"),
        ("regex", "must have one of"),
        ({"xml": "a"}, "Use json"),
        ({"regex": 5}, "Use json"),
        ({"choice": []}, "Use json"),
        ({"choice": "yes"}, "Use json"),
        ({"choice": ["a", 1]}, "Use json"),
        ({"json_object": False}, "Use json"),
        ({"json": 5}, "Use json"),
        ({"json": "[1]"}, "not a JSON object"),
        ({"json": "{"}, "cannot be used"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": ""}, "1 to 32768 bytes"),
        ({"regex": "\ud800"}, "1 to 32768 bytes"),
        ({"grammar": "start: nothing"}, "unknown name"),
    ],
)
def test_words_that_cannot_be_followed_are_refused_with_the_cause(asked: Any, why: str) -> None:
    with pytest.raises(BadSampling, match=f"structured_outputs.*{why}") as caught:
        grammar_of(None, asked)
    assert caught.value.option == "structured_outputs"


def test_two_formats_at_once_are_refused() -> None:
    with pytest.raises(BadSampling, match="beside response_format"):
        grammar_of({"type": "json_object"}, {"regex": "a"})


def test_raw_bytes_have_no_grammar() -> None:
    local = LocalModel(SPEC, ByteTokenizer(), ())
    options: Options = {"response_format": {"type": "json_object"}}
    with pytest.raises(BadInput, match="own tokenizer"):
        local.request(Question("hello", None, 1.0, options))
