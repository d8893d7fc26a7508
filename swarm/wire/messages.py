"""Messages between peers: one dataclass for each kind, and the caps of their fields."""

from dataclasses import dataclass, field
from typing import Any

CHUNK_CAP = 256  # tokens in one STEP: a long prompt never holds the others up for longer
HOP_FIGURES = 3  # queue, compute and network microseconds of each hop
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
    """Last stage to client: new ids, the first at `position`; `finish` ends the session.

    The body has their log-probabilities, if the client asked for them.
    """

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
