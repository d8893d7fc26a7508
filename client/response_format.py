"""Response formats: how people say which grammar an answer must follow, in the field's dialects."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarm.errors import BadSampling
from swarm.wire.grammars import Grammar, check_grammar, fault_of

ANY_OBJECT = {"type": "object"}
FORMATS = "text, json_object or json_schema"
WORDS = "json, json_object, regex, choice or grammar"


def grammar_of(response_format: object, structured_outputs: object) -> Grammar:
    """The grammar that two options ask for, the second by vLLM's words; () if none does.

    Raises BadSampling: an answer must not look as if it followed what it did not.
    """
    if response_format is None and structured_outputs is None:
        return ()
    name, read, value = (
        ("response_format", _of_format, response_format)
        if structured_outputs is None
        else ("structured_outputs", _of_words, structured_outputs)
    )
    grammar = read(value)
    if value is structured_outputs and _of_format(response_format):
        raise _wrong("structured_outputs", "is given beside response_format", "Give one of them.")
    if grammar:
        _check(grammar, name)
    return grammar


def _of_format(value: object) -> Grammar:
    """OpenAI's `response_format` for chats, the flat one for responses, and llama.cpp's."""
    match value:
        case {"type": "text"} | None:
            return ()
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return _of_schema(schema, "response_format")
        case {"type": "json_schema" | "json_object", "schema": Mapping() as schema}:
            return _of_schema(schema, "response_format")
        case {"type": "json_object"}:
            return _of_schema(ANY_OBJECT, "response_format")
        case {"type": "json_schema"}:
            raise _wrong("response_format", "has no schema", "Give json_schema.schema.")
    need = f'It must be like {{"type": ...}} with {FORMATS}.'
    raise _wrong("response_format", f"is {value!r:.40}", need)


def _of_words(value: object) -> Grammar:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _wrong("structured_outputs", f"is {value!r:.40}", f"It must have one of {WORDS}.")
    ((word, asked),) = value.items()
    read = _READERS.get(word) if isinstance(word, str) else None
    found = read(asked) if read else ()
    if not found:
        raise _wrong("structured_outputs", f"has {word!r:.20}: {asked!r:.40}", f"Use {WORDS}.")
    return found


def _of_json(schema: object) -> Grammar:
    if isinstance(schema, str):
        return "json_schema", schema
    return _of_schema(schema, "structured_outputs") if isinstance(schema, Mapping) else ()


def _of_schema(schema: Mapping[str, Any], option: str) -> Grammar:
    try:
        return "json_schema", json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(option, "has a schema that is no JSON", "Use plain values.") from error


def _of_choice(choices: object) -> Grammar:
    """Any one of some texts, as a Lark grammar."""
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        return ()
    if not choices or not all(isinstance(each, str) and each for each in choices):
        return ()
    return "lark", "start: " + " | ".join(json.dumps(each) for each in choices)


_READERS: dict[str, Callable[[Any], Grammar]] = {
    "json": _of_json,
    "json_object": lambda wanted: _of_schema(ANY_OBJECT, "") if wanted is True else (),
    "regex": lambda text: ("regex", text) if isinstance(text, str) else (),
    "choice": _of_choice,
    "grammar": lambda text: ("lark", text) if isinstance(text, str) else (),
}


def _check(grammar: Grammar, option: str) -> None:
    try:
        check_grammar(grammar)
    except BadSampling as error:
        raise _wrong(option, f"has a grammar that {error.next_step}") from error
    if fault := fault_of(grammar):
        raise _wrong(option, f"cannot be used: {fault}", "Simplify or mend it.")


def _wrong(option: str, what: str, need: str = "") -> BadSampling:
    return BadSampling(f"{option} {what.rstrip('.')}.", need, option=option)
