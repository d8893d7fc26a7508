"""Codec: how messages travel in frames: bytes in, messages out, no I/O.

A frame's header is a msgpack map, its body raw tensor bytes. The map's "type" names the message;
the other keys are its fields.
"""

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from typing import Any

import msgpack

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.wire.framing import BODY_CAP, HEADER_CAP, PREFIX, FrameBuffer
from swarm.wire.messages import DTYPE_CAP, KINDS, ROUTE_CAP, SESSION_CAP, TEXT_CAP, Message


class Codec:
    """Messages to frames and back, for one table of message kinds."""

    def __init__(self, kinds: Mapping[str, type[Message]] = KINDS) -> None:
        self._by_name = {name: _Shape.of(name, kind) for name, kind in kinds.items()}
        self._pack = msgpack.Packer().pack
        self._by_kind = {shape.kind: shape for shape in self._by_name.values()}

    def encode(self, message: Message) -> list[bytes | memoryview]:
        """Return the frame as buffers to write in order; raises LocalProtocolError.

        The body is not copied.
        """
        kind = type(message)
        shape = self._by_kind.get(kind)
        if shape is None:
            raise LocalProtocolError(f"{kind.__name__} does not travel on this stream.")
        values = dict(zip(shape.names, shape.values_of(message), strict=True))
        body = values.pop("body")
        if wrong := _wrong_field(shape.rules, values):
            raise LocalProtocolError(f"{kind.__name__} has a wrong field {wrong!r}.")
        values["type"] = shape.name
        try:
            header = self._pack(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"{kind.__name__} does not travel: {error}.") from error
        if not body and len(header) <= HEADER_CAP:
            return [PREFIX.pack(len(header), 0) + header]
        body = memoryview(body).cast("B")
        if len(header) > HEADER_CAP or body.nbytes > BODY_CAP:
            raise LocalProtocolError(f"{kind.__name__} exceeds the caps of a frame.")
        return [PREFIX.pack(len(header), body.nbytes) + header, body]

    def decode(self, header: bytes | memoryview, body: bytes | memoryview) -> Message:
        """Return the message of one frame; raises RemoteProtocolError on anything irregular."""
        try:
            values = msgpack.unpackb(header, strict_map_key=True)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError(f"A frame's header is not msgpack: {error!r}.") from error
        if not isinstance(values, dict):
            raise RemoteProtocolError("A frame's header is not a map.")
        name = values.pop("type", None)
        shape = self._by_name.get(name) if isinstance(name, str) else None
        if shape is None:
            raise RemoteProtocolError(f"Unknown message type {str(name)[:40]!r}.")
        wrong = _wrong_field(shape.rules, values)
        if wrong is not None:
            what = f"{shape.kind.__name__} has a wrong field {str(wrong)[:40]!r}."
            raise RemoteProtocolError(what)
        values["body"] = body
        try:
            return shape.kind(**values)
        except TypeError as error:
            raise RemoteProtocolError(f"{shape.kind.__name__} lacks a field.") from error


class Decoder:
    """Cuts a stream of bytes into messages; feed it whatever arrives."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._frames = FrameBuffer()

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """Yield every message that is now complete; raises RemoteProtocolError."""
        self._frames.add(data)
        while frame := self._frames.take():
            yield self._codec.decode(*frame)


def session_of(header: bytes | memoryview) -> tuple[str, int] | None:
    """Session and epoch that an irregular frame names, to answer it; None for a FAIL."""
    try:
        values = msgpack.unpackb(header, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("type") == "FAIL":
        return None
    session, epoch = values.get("session"), values.get("epoch")
    if not isinstance(session, str) or len(session) > SESSION_CAP:
        return None
    return (session, epoch) if type(epoch) is int and _is_count(epoch) else None


Check = Callable[[Any], bool]
Rule = tuple[type | None, Check | None]  # what a value is exactly (None: any), what holds of it
UNKNOWN: Rule = None, lambda value: False
TEXT_CAPS = {
    "session": SESSION_CAP,
    "reason": TEXT_CAP,
    "dtype": DTYPE_CAP,
}  # else the cap of a header


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a kind of message travels."""

    name: str
    kind: type[Message]
    names: tuple[str, ...]  # of its fields
    values_of: Callable[[Message], tuple[Any, ...]]
    rules: dict[str, Rule]  # for all but the body

    @classmethod
    def of(cls, name: str, kind: type[Message]) -> "_Shape":
        """The shape of a dataclass, by its type hints."""
        hints = typing.get_type_hints(kind)
        names = tuple(each.name for each in fields(kind))
        rules = {each: _rule_of(hints[each], each) for each in names if each != "body"}
        return cls(name, kind, names, attrgetter(*names), rules)


def _wrong_field(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> str | None:
    for name, value in values.items():
        kind, check = rules.get(name, UNKNOWN)
        is_other = type(value) is not kind and kind
        if is_other and not (kind is str and isinstance(value, StrEnum)):
            return name
        if check and not check(value):
            return name
    return None


def _rule_of(hint: Any, name: str) -> Rule:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return dict, _has_plain_keys
    if origin is list:
        return list, None if arguments[0] is Any else _all_are(_rule_of(arguments[0], name))
    if hint is int:
        return int, _is_count
    if hint in (bool, bytes):
        return hint, None
    if hint is str:
        limit = TEXT_CAPS.get(name)
        return str, None if limit is None else lambda value: len(value) <= limit
    if hint is float:
        return None, lambda value: type(value) in (int, float) and 0 <= value < 1e12
    raise LocalProtocolError(f"No check for field {name} of type {hint}.")


def _is_count(value: int) -> bool:
    return 0 <= value < 2**62


def _has_plain_keys(value: dict[Any, Any]) -> bool:
    return all(type(key) is str for key in value)


def _all_are(rule: Rule) -> Check:
    kind, check = rule

    def check_all(values: list[Any]) -> bool:
        for value in values:
            if (type(value) is not kind and kind) or (check and not check(value)):
                return False
        return len(values) <= ROUTE_CAP

    return check_all
