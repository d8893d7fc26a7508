"""Grammars that an answer must follow: kinds and bounds, and what llguidance makes of them."""

import json
from typing import TYPE_CHECKING

from swarm.errors import BadSampling
from swarm.formatting import printable

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

KINDS = ("json_schema", "regex", "lark")
MOST_GRAMMAR_BYTES = 32 << 10  # an OPEN's header has room for it beside the longest route
REASON_CAP = 300  # characters of what llguidance says
FUEL = 500_000  # of a grammar's regular expressions, about 50,000 a ms
STEP_FUEL, STEP_ITEMS = 100_000, 20_000  # of one mask: a few ms
LEXER_STATES = 20_000  # about 2 kB each
Grammar = tuple[str, ...]  # its kind and its text; () is none


def check_grammar(grammar: object) -> None:
    """Refuse what is not () or (kind, text) within the bounds: raises BadSampling."""
    if grammar == ():
        return
    if not (isinstance(grammar, tuple) and len(grammar) == 2 and grammar[0] in KINDS):
        need = f"must be one of {', '.join(KINDS)}, and a text."
        raise BadSampling("grammar", need, option="grammar")
    text = grammar[1]
    if not isinstance(text, str) or not 0 < size_of(text) <= MOST_GRAMMAR_BYTES:
        need = f"must be a text of 1 to {MOST_GRAMMAR_BYTES} bytes of UTF-8."
        raise BadSampling("grammar", need, option="grammar")


def size_of(text: str) -> int:
    """Bytes of a text as UTF-8; 0 if halves of surrogate pairs are in it."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def form_of(grammar: Grammar) -> str:
    """A grammar as llguidance takes it; raises ValueError if a schema is no JSON object."""
    from llguidance import LLMatcher  # weighs: loaded by whoever has a grammar

    kind, text = grammar
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(_schema_of(text))
    return (
        LLMatcher.grammar_from_regex(text) if kind == "regex" else LLMatcher.grammar_from_lark(text)
    )


def limits() -> "LLParserLimits":
    """What a grammar may cost to compile, and a token of it; grammars come from strangers."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=FUEL,
        step_lexer_fuel=STEP_FUEL,
        step_max_items=STEP_ITEMS,
        max_lexer_states=LEXER_STATES,
        verbose_errors=False,
    )


def fault_of(grammar: Grammar, tokenizer: "LLTokenizer | None" = None) -> str:
    """What is wrong with a grammar, with any tokenizer or with this one; "" if nothing is."""
    from llguidance import LLMatcher

    try:
        form = form_of(grammar)
    except ValueError as error:
        return reason_of(str(error))
    is_wrong, found = LLMatcher.validate_grammar_with_warnings(form, tokenizer, limits=limits())
    return reason_of(found[0]) if is_wrong else ""


def reason_of(said: str) -> str:
    """What llguidance says, in one short line."""
    return printable(" ".join(said.split("<state>")[0].split()))[:REASON_CAP].rstrip(".") or "?"


def _schema_of(text: str) -> str:
    """A schema's own text, once it is known to be one object: llguidance pastes it into another."""
    try:
        schema = json.loads(text)
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply") from error
    if not isinstance(schema, dict):
        raise ValueError("the schema is not a JSON object")
    return text
