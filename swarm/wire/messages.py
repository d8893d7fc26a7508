"""Messages between peers, and how they travel in frames: bytes in, messages out, no I/O.

A frame's header is a msgpack map, its body raw tensor bytes. The map's "type" names the message;
the other keys are its fields.
"""

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import msgpack

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.wire.framing import BODY_CAP, HEADER_CAP, PREFIX, FrameBuffer

CHUNK_CAP = 256  # tokens in one STEP: a long prompt never holds the others up for longer
SESSION_CAP = 64  # characters in a session id
ROUTE_CAP = 512  # stages in a route
TEXT_CAP = 2048  # characters in a reason
DTYPE_CAP = 16  # characters in the name of a dtype
KEY_BYTES = 16  # of a session's secret
COUNT_CAP = 1 << 31  # epochs and rewinds of a session: what follows from them still travels


@dataclass(slots=True)
class Message:
    """Anything that travels in a frame. Nobody changes a message.

    Frozen, it would be: but to fill in a frozen one takes three times as long, for every token.
    """

    body: bytes | memoryview = field(default=b"", kw_only=True, repr=False)


@dataclass(slots=True)
class SessionMessage(Message):
    """A message of one session; `key` is the session's secret, chosen by the client."""

    session: str
    epoch: int
    key: bytes = field(repr=False)


@dataclass(slots=True)
class Open(SessionMessage):
    """Client to every stage: reserve KV; the body holds the token ids so far (int32)."""

    stage: int  # which hop of the route the receiver is
    route: list[list[Any]]  # [leader peer, start, end] for each stage, in order
    model: str  # digest that the receiver must have loaded
    capacity: int  # tokens of KV to reserve
    generated: int = 0  # how many ids of the body were generated before (replay)
    sampling: dict[str, Any] = field(default_factory=dict)  # for the last stage


@dataclass(slots=True)
class Opened(SessionMessage):
    """Stage to client: KV is reserved."""

    stage: int
    held: int = 0  # leading ids of the OPEN whose rows are here already


@dataclass(slots=True)
class Busy(SessionMessage):
    """Stage to client: no room now."""

    stage: int
    retry_after_seconds: float
    reason: str = ""


@dataclass(slots=True)
class Step(SessionMessage):
    """To the next stage: the body holds `tokens` ids or hidden rows that start at `position`."""

    stage: int  # which hop of the route the receiver is
    position: int
    tokens: int
    sample: bool  # the last row is to be sampled by the last stage
    dtype: str  # of the body: "i32" ids, else hidden rows "f32", "bf16", "f16", "i8"
    hops: list[list[int]] = field(default_factory=list)  # queue, compute, network microseconds
    drafts: list[int] = field(default_factory=list)  # the last rows are of these guessed ids
    rewinds: int = 0  # how often this session went back over guesses that were wrong


@dataclass(slots=True)
class Token(SessionMessage):
    """Last stage to client: new ids, the first at `position`; `finish` ends the session."""

    position: int
    ids: list[int]
    finish: str = ""  # "", "stop" or "length"
    hops: list[list[int]] = field(default_factory=list)
    drafted: int = 0  # ids that were guessed; all but one of `ids` were right


@dataclass(slots=True)
class Fail(Message):
    """This session cannot go on here; `code` is for programs, `reason` for people."""

    session: str
    epoch: int
    code: str
    reason: str = ""
    peer: str = ""  # who is to blame, if not the sender


@dataclass(slots=True)
class Cancel(SessionMessage):
    """Client to stages: stop at once and free everything."""


@dataclass(slots=True)
class Close(SessionMessage):
    """Client to stages: the session ended well; free everything."""


@dataclass(slots=True)
class Moved(Message):
    """Stage to client: I am leaving; open the session elsewhere under a new epoch."""

    session: str
    epoch: int


@dataclass(slots=True)
class Ping(Message):
    """Is anybody there?"""

    nonce: int


@dataclass(slots=True)
class Pong(Message):
    """Yes."""

    nonce: int


KINDS: dict[str, type[Message]] = {
    kind.__name__.upper(): kind
    for kind in (Open, Opened, Busy, Step, Token, Fail, Cancel, Close, Moved, Ping, Pong)
}


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
        if (type(value) is not kind and kind) or (check and not check(value)):
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
