"""ToolCallReader: finds the calls of tools in what a model writes, in its template's own format."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from client.text.detokenizer import overlap

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
DECODER = json.JSONDecoder()


class CallFormat(Enum):
    """How a model writes calls, by what its template shows."""

    HERMES = "JSON within <tool_call> tags: Qwen, Hermes, and templates that know no tools"
    XML = "<function=NAME> and <parameter=NAME> within <tool_call> tags: Qwen coder models"
    JSON = "the whole answer is JSON: Llama 3, Mistral"

    @classmethod
    def of(cls, template: str) -> "CallFormat":
        """The format that a chat template teaches."""
        if BEGIN in template:
            return cls.XML if "<function=" in template else cls.HERMES
        is_json = "[TOOL_CALLS]" in template or '"parameters"' in template
        return cls.JSON if is_json else cls.HERMES

    @property
    def enforced(self) -> "CallFormat":
        """The format in which a grammar makes a model call: arguments need JSON."""
        return CallFormat.HERMES if self is CallFormat.XML else self


@dataclass(frozen=True, slots=True)
class Call:
    """A tool and the arguments to call it with, as a JSON object in text."""

    name: str
    arguments: str


class ToolCallReader:
    """Takes text piece by piece; gives text and calls. What is no call after all stays text."""

    def __init__(self, format_: CallFormat, names: Sequence[str]) -> None:
        self._format, self._names = format_, frozenset(names)
        self._held = ""
        self._is_call = False  # within tags
        self._is_text = False  # of whole answers in JSON: this one is none

    def feed(self, piece: str) -> list[str | Call]:
        """Take more of the text; returns what is certain now."""
        self._held += piece
        if self._format is CallFormat.JSON:
            return self._feed_whole()
        found: list[str | Call] = []
        while (step := self._step()) is not None:
            found += step
        return [each for each in found if each]

    def finish(self) -> list[str | Call]:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        if self._is_call:
            return list(self._calls_in(held)) or [BEGIN + held]
        calls = list(self._known_calls(held)) if self._format is CallFormat.JSON else []
        return list(calls) or [text for text in (held,) if text]

    def _feed_whole(self) -> list[str | Call]:
        start = self._held.lstrip()
        self._is_text = self._is_text or (start != "" and start[0] not in "{[")
        if not self._is_text:
            return []
        text, self._held = self._held, ""
        return [text] if text else []

    def _step(self) -> list[str | Call] | None:
        """Go over one tag; None if none is complete."""
        tag = END if self._is_call else BEGIN
        before, found, after = self._held.partition(tag)
        if found:
            self._held, self._is_call = (
                after.lstrip() if self._is_call else after,
                not self._is_call,
            )
            return self._inside(before) if tag is END else [before.rstrip()]
        if self._is_call:
            return None
        certain = len(before) - overlap(before, BEGIN)
        certain = len(before[:certain].rstrip())  # blanks before a call are no text
        text, self._held = before[:certain], before[certain:]
        return [text] if text else None

    def _inside(self, text: str) -> list[str | Call]:
        return list(self._calls_in(text)) or [f"{BEGIN}{text}{END}"]

    def _calls_in(self, text: str) -> Iterator[Call]:
        if self._format is CallFormat.XML:
            for name, body in FUNCTION.findall(text):
                given = {key: _value(value) for key, value in PARAMETER.findall(body)}
                yield Call(name, json.dumps(given, ensure_ascii=False))
        else:
            yield from map(_call_of, filter(_is_call, _values(text)))

    def _known_calls(self, text: str) -> Iterator[Call]:
        """Calls, if all that was written is calls of tools that there are."""
        values = [each for value in _values(text) for each in _listed(value)]
        if values and all(_is_call(value) and value["name"] in self._names for value in values):
            yield from map(_call_of, values)


def _values(text: str) -> Iterator[Any]:
    """The JSON values that a text consists of, parted by blanks, semicolons or commas."""
    rest = text.strip()
    while rest:
        try:
            value, end = DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            return
        yield value
        rest = rest[end:].lstrip(" \n\t;,")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and bool(value["name"])


def _call_of(value: dict[str, Any]) -> Call:
    """Arguments go by either name, and some models write them as text."""
    given = value.get("arguments", value.get("parameters", {}))
    text = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    return Call(value["name"], text or "{}")


def _value(text: str) -> Any:
    """A parameter's value: JSON where it is that, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
