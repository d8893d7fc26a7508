"""Tool grammar: what an answer must look like where a tool has to be called, for llguidance."""

import json
from collections.abc import Mapping
from typing import Any

from client.text.tool_calls import CallFormat
from client.text.tool_prompt import Tools

TAGGED = """start: call{more}
call: "<tool_call>\\n" body "\\n</tool_call>"
body: %json {schema}
"""
SEPARATED = {  # as models are taught; a weak one would go on writing blanks where any will do
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
MORE = ' ("\\n" call)*'


def call_grammar(tools: Tools, format_: CallFormat, *, are_parallel: bool) -> str:
    """A grammar in Lark that lets through calls of these tools alone, as they are read here."""
    if format_ is CallFormat.JSON:
        return f"start: %json {_schema_of(tools, 'parameters')}\n"
    schema = _schema_of(tools, "arguments")
    return TAGGED.format(more=MORE if are_parallel else "", schema=schema)


def _schema_of(tools: Tools, word: str) -> str:
    called = [_call_schema(tool["function"], word) for tool in tools]
    return json.dumps({"x-guidance": SEPARATED, "anyOf": called})


def _call_schema(function: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    given = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, word: given},
        "required": ["name", word],
        "additionalProperties": False,
    }
