"""Messages between peers, and how they travel in frames: bytes in, messages out, no I/O.

A frame's header is a msgpack map, its body raw tensor bytes. The map's "type" names the message;
the other keys are its fields.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgpack

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.frames import BODY_CAP, HEADER_CAP, PREFIX, FrameBuffer

SESSION_CAP = 64  # characters in a session id
ROUTE_CAP = 512  # stages in a route
TEXT_CAP = 2048  # characters in a reason


@dataclass(frozen=True, slots=True)
class Message:
    """Anything that travels in a frame."""

    body: bytes | memoryview = field(default=b"", kw_only=True, repr=False)


@dataclass(frozen=True, slots=True)
class SessionMessage(Message):
    """A message of one session; `key` is the session's secret, chosen by the client."""

    session: str
    epoch: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Open(SessionMessage):
    """Client to every stage: reserve KV; the body holds the token ids so far (int32)."""

    stage: int  # which hop of the route the receiver is
    route: list[list[Any]]  # [leader peer, start, end] for each stage, in order
    model: str  # digest that the receiver must have loaded
    capacity: int  # tokens of KV to reserve
    generated: int = 0  # how many ids of the body were generated before (replay)
    sampling: dict[str, Any] = field(default_factory=dict)  # for the last stage


@dataclass(frozen=True, slots=True)
class Opened(SessionMessage):
    """Stage to client: KV is reserved."""

    stage: int
    held: int = 0  # leading ids of the OPEN whose rows are here already


@dataclass(frozen=True, slots=True)
class Busy(SessionMessage):
    """Stage to client: no room now."""

    stage: int
    retry_after_seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Token(SessionMessage):
    """Last stage to client: new ids, the first at `position`; `finish` ends the session."""

    position: int
    ids: list[int]
    finish: str = ""  # "", "stop" or "length"
    hops: list[list[int]] = field(default_factory=list)
    drafted: int = 0  # ids that were guessed; all but one of `ids` were right


@dataclass(frozen=True, slots=True)
class Fail(Message):
    """This session cannot go on here; `code` is for programs, `reason` for people."""

    session: str
    epoch: int
    code: str
    reason: str = ""
    peer: str = ""  # who is to blame, if not the sender


@dataclass(frozen=True, slots=True)
class Cancel(SessionMessage):
    """Client to stages: stop at once and free everything."""


@dataclass(frozen=True, slots=True)
class Close(SessionMessage):
    """Client to stages: the session ended well; free everything."""


@dataclass(frozen=True, slots=True)
class Moved(Message):
    """Stage to client: I am leaving; open the session elsewhere under a new epoch."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Is anybody there?"""

    nonce: int


@dataclass(frozen=True, slots=True)
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
        self._kinds = dict(kinds)
        self._names = {kind: name for name, kind in kinds.items()}
        self._checks = {kind: _checks_of(kind) for kind in kinds.values()}

    def encode(self, message: Message) -> list[bytes | memoryview]:
        """Return the frame as buffers to write in order; raises LocalProtocolError.

        The body is not copied.
        """
        kind = type(message)
        if kind not in self._names:
            raise LocalProtocolError(f"{kind.__name__} does not travel on this stream.")
        values: dict[str, Any] = {"type": self._names[kind]}
        for name, check in self._checks[kind].items():
            values[name] = value = getattr(message, name)
            if not check(value):
                raise LocalProtocolError(f"{kind.__name__} has a wrong field {name!r}.")
        try:
            header = msgpack.packb(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"{kind.__name__} does not travel: {error}.") from error
        body = memoryview(message.body).cast("B")
        if len(header) > HEADER_CAP or body.nbytes > BODY_CAP:
            raise LocalProtocolError(f"{kind.__name__} exceeds the caps of a frame.")
        head = PREFIX.pack(len(header), body.nbytes) + header
        return [head, body] if body.nbytes else [head]

    def decode(self, header: bytes | memoryview, body: bytes | memoryview) -> Message:
        """Return the message of one frame; raises RemoteProtocolError on anything irregular."""
        try:
            values = msgpack.unpackb(header, strict_map_key=True)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError(f"A frame's header is not msgpack: {error!r}.") from error
        if not isinstance(values, dict):
            raise RemoteProtocolError("A frame's header is not a map.")
        name = values.pop("type", None)
        kind = self._kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise RemoteProtocolError(f"Unknown message type {str(name)[:40]!r}.")
        return self._build(kind, values, body)

    def _build(
        self, kind: type[Message], values: dict[str, Any], body: bytes | memoryview
    ) -> Message:
        checks = self._checks[kind]
        for name, value in values.items():
            if name not in checks or not checks[name](value):
                raise RemoteProtocolError(f"{kind.__name__} has a wrong field {str(name)[:40]!r}.")
        try:
            return kind(**values, body=body)
        except TypeError as error:
            raise RemoteProtocolError(f"{kind.__name__} lacks a field.") from error


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
    return (session, epoch) if isinstance(epoch, int) and _is_count(epoch) else None


def _checks_of(kind: type[Message]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: _check_of(hints[f.name], f.name) for f in fields(kind) if f.name != "body"}


def _check_of(hint: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        return _container_check(hint, name)
    limit = {"session": SESSION_CAP, "reason": TEXT_CAP}.get(name, HEADER_CAP)
    if hint is int:
        return _is_count
    if hint is float:
        return lambda value: type(value) in (int, float) and 0 <= value < 1e12
    if hint is bool:
        return lambda value: type(value) is bool
    return lambda value: type(value) is hint and len(value) <= limit


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _container_check(hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return lambda value: type(value) is dict and all(type(key) is str for key in value)
    if origin is not list:
        raise LocalProtocolError(f"No check for field {name} of type {hint}.")
    if arguments[0] is Any:
        return lambda value: type(value) is list
    inner = _check_of(arguments[0], name)
    return lambda value: (
        type(value) is list and len(value) <= ROUTE_CAP and all(inner(item) for item in value)
    )
