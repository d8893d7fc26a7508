"""Rules of the wire: who may send what in which state of a session, and why a session ends."""

from dataclasses import dataclass
from enum import StrEnum

from swarm.wire.messages import (
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Step,
    Token,
)


class Side(StrEnum):
    """Who hears a message of a session."""

    STAGE = "stage"
    CLIENT = "client"


class State(StrEnum):
    """What a session is to the one who hears: `open` from its OPEN to its end, on that route."""

    CLOSED = "closed"
    OPEN = "open"


class Role(StrEnum):
    """What the sender is to the session of the one who hears; a peer may be several at once."""

    CLIENT = "client"  # who sends an OPEN is the client of what it opens
    BEFORE = "stage before"  # of the first stage: the last one
    NEXT = "next stage"  # of the last stage: the first one
    ANY_STAGE = "any stage"  # of the route
    NAMED_STAGE = "stage it names"  # the message says which
    LAST_STAGE = "last stage"


@dataclass(frozen=True, slots=True)
class Move:
    """A message that may be sent: to whom, while the session there is what, and by whom."""

    to: Side
    states: tuple[State, ...]
    kind: type[Message]
    senders: tuple[Role, ...]


_IN_ANY_STATE, _WHILE_OPEN = (State.CLOSED, State.OPEN), (State.OPEN,)

LEGAL_MOVES = (
    Move(Side.STAGE, _IN_ANY_STATE, Open, (Role.CLIENT,)),
    Move(Side.STAGE, _WHILE_OPEN, Step, (Role.CLIENT, Role.BEFORE)),
    Move(Side.STAGE, _WHILE_OPEN, Fail, (Role.NEXT,)),
    Move(Side.STAGE, _WHILE_OPEN, Close, (Role.CLIENT,)),
    Move(Side.STAGE, _WHILE_OPEN, Cancel, (Role.CLIENT,)),
    Move(Side.CLIENT, _WHILE_OPEN, Opened, (Role.NAMED_STAGE,)),
    Move(Side.CLIENT, _WHILE_OPEN, Busy, (Role.ANY_STAGE,)),
    Move(Side.CLIENT, _WHILE_OPEN, Step, (Role.ANY_STAGE,)),
    Move(Side.CLIENT, _WHILE_OPEN, Token, (Role.LAST_STAGE,)),
    Move(Side.CLIENT, _WHILE_OPEN, Fail, (Role.ANY_STAGE,)),
    Move(Side.CLIENT, _WHILE_OPEN, Moved, (Role.ANY_STAGE,)),
)
_SENDERS = {(move.to, s, move.kind): move.senders for move in LEGAL_MOVES for s in move.states}


def is_legal(kind: type[Message], senders: frozenset[Role], to: Side, state: State) -> bool:
    """Whether a peer in these roles may send a kind of message to a session in a state."""
    return not senders.isdisjoint(_SENDERS.get((to, state, kind), ()))


def legal_kinds(senders: frozenset[Role], to: Side, state: State) -> frozenset[type[Message]]:
    """All that a peer in these roles may send to a session in a state, to be looked up often."""
    kinds = (move.kind for move in LEGAL_MOVES)
    return frozenset(kind for kind in kinds if is_legal(kind, senders, to, state))


def is_heard(kind: type[Message], to: Side) -> bool:
    """Whether there is anybody who may ever send a kind of message there."""
    return any((to, state, kind) in _SENDERS for state in State)


class FailCode(StrEnum):
    """The `code` of a FAIL; one that a reader does not know counts as a refusal for good."""

    UNKNOWN_SESSION = "unknown_session"  # nobody opened it here, or it was idle for too long
    STALE_EPOCH = "stale_epoch"  # of a route that the client has left
    WRONG_SENDER = "wrong_sender"  # a STEP from a peer that is not before us in the route
    WRONG_MODEL = "wrong_model"  # an OPEN for a model that is not served here
    BAD_FRAME = "bad_frame"  # breaks a limit, or cannot be what it says
    STAGE_LOST = "stage_lost"  # the shard, its worker or the next stage is gone
    OVERFLOW = "overflow"  # more rows than the session or the model's context allows
    LEAVING = "leaving"  # the node is on its way out
    INTERNAL = "internal"  # a fault of ours: the log of the node says which
    NO_ROOM = "no_room"  # between worker and node only: a client hears BUSY


TEMPORARY = frozenset({FailCode.STAGE_LOST, FailCode.UNKNOWN_SESSION, FailCode.LEAVING})
