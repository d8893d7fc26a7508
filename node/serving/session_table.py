"""SessionTable: every session at this node; who may send what to which, decided without I/O."""

import asyncio
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from node.serving.draft_length import DraftLength
from swarm.errors import BadSampling, RemoteProtocolError
from swarm.wire.messages import (
    CHUNK_CAP,
    COUNT_CAP,
    HOP_FIGURES,
    KEY_BYTES,
    SESSION_CAP,
    Fail,
    Message,
    Open,
    SessionMessage,
    Step,
)
from swarm.wire.rules import FailCode, Role, Side, State, legal_kinds
from swarm.wire.sampling_params import MOST_SPECULATED, Sampling

IDLE_SECONDS = 60.0  # a session without a frame for longer is freed
SESSIONS_CAP = 1024
CAPACITY_CAP = 1 << 20  # tokens
ROW_CAP = 1 << 17  # bytes of one hidden row
ID_BYTES = 4
REASON_CAP = 300  # characters of what a stranger wrote
MARK_DIGITS = 16  # of a client, in the names of its sessions
Hops = list[list[int]]


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of a route, by its leader."""

    leader: str
    start: int
    end: int


@dataclass(slots=True)
class InFlightStep:
    """What is to be remembered of a step while the worker computes it."""

    hops: Hops = field(default_factory=list)
    network_us: int = 0
    drafts: list[int] = field(default_factory=list)
    tokens: int = 0

    def after(self, tokens: int) -> "InFlightStep | None":
        """What remains to be remembered when the worker has computed only so many of them."""
        return replace(self, tokens=self.tokens - tokens) if self.tokens > tokens else None


@dataclass(slots=True)
class StageSession:
    """One session at one stage of ours."""

    message: Open
    client: str
    route: tuple[Hop, ...]
    device: int
    seen_seconds: float
    next_position: int = 0
    rewinds: int = 0  # of the last step
    held: int = 0  # rows that the worker had before the first step
    known: int = 0  # ids that OPEN brought: nobody guesses these, so nobody goes back to them
    uses_int8: bool = False  # its rows go on as int8
    in_flight: dict[int, InFlightStep] = field(default_factory=dict)  # by position
    draft_length: DraftLength = field(default_factory=DraftLength)  # used at the last stage
    name: str = field(init=False)  # what the worker calls it: unlike clients, epochs never mix
    is_last: bool = field(init=False)  # the session's tokens are sampled here
    next_stage: int = field(init=False)  # after the last one the ring begins again
    _legal: dict[str, frozenset[type[Message]]] = field(init=False)  # what which peer may send

    def __post_init__(self) -> None:
        stage, stages = self.message.stage, len(self.route)
        self.name = name_of(self.message, self.client)
        self.is_last = stage == stages - 1
        self.next_stage = (stage + 1) % stages
        peers = {self.client, self.route[stage - 1].leader, self.route[self.next_stage].leader}
        self._legal = {
            peer: legal_kinds(self._roles_of(peer), Side.STAGE, State.OPEN) for peer in peers
        }

    @property
    def owner(self) -> str:
        """Whose prompts share rows: the same client's, through the same stages before ours."""
        way = (self.client, *self.route[: self.message.stage])
        return hashlib.sha256(repr(way).encode()).hexdigest()

    @property
    def hop(self) -> Hop:
        """The stage of ours that the session uses."""
        return self.route[self.message.stage]

    def may_send(self, peer: str, kind: type[Message]) -> bool:
        """Whether a peer may send a kind of message to this session, now that it is open."""
        return kind in self._legal.get(peer, ())

    def _roles_of(self, peer: str) -> frozenset[Role]:
        """What a peer is to this session; its client is that only, whatever the route says."""
        if peer == self.client:
            return frozenset({Role.CLIENT})
        leads = {
            Role.BEFORE: self.route[self.message.stage - 1].leader,
            Role.NEXT: self.route[self.next_stage].leader,
        }
        return frozenset(role for role, leader in leads.items() if leader == peer)

    def is_of(self, message: SessionMessage) -> bool:
        """Whether a message names this very session: its id, epoch and key."""
        own = self.message
        named = message.session, message.epoch, message.key
        return named == (own.session, own.epoch, own.key)

    def is_meant(self, message: SessionMessage, peer: str) -> bool:
        """Whether a message is about this very session, from one of those who may send it."""
        return self.is_of(message) and self.may_send(peer, type(message))

    def accept(self, step: Step, network_seconds: float, now_seconds: float) -> None:
        """Note a step that goes to the worker."""
        self.seen_seconds = now_seconds
        self.next_position = step.position + step.tokens
        self.rewinds = step.rewinds
        network_us = int(network_seconds * 1e6)
        self.in_flight[step.position] = InFlightStep(
            step.hops, network_us, step.drafts, step.tokens
        )
        if self.is_last:
            spent_us = sum(hop[0] + hop[1] for hop in step.hops)
            self.draft_length.note_return(now_seconds, spent_us / 1e6)


class SessionTable:
    """Every session at this node, by client and session id; the newest epoch wins.

    A client's sessions are its own: whoever opens one by the same id has another beside it. So
    nobody who has learnt an id, as every stage of a route does, can take it before its client.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str, int], StageSession] = {}
        self._by_id: dict[
            str, dict[tuple[str, int], StageSession]
        ] = {}  # of one id, by client and stage
        self._by_name: dict[tuple[str, int], StageSession] = {}  # and by device
        self._removed = asyncio.Event()  # some session, since somebody waits for that

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[StageSession]:
        return iter(list(self._sessions.values()))

    @property
    def is_full(self) -> bool:
        """Whether another session would exceed the cap."""
        return len(self._sessions) >= SESSIONS_CAP

    def get(self, client: str, session_id: str, stage: int) -> StageSession | None:
        """A client's session at one hop of its route."""
        return self._sessions.get((client, session_id, stage))

    def for_step(self, step: Step, peer: str) -> StageSession | None:
        """The session that a step is for, by stage, key and sender; its epoch may be another."""
        fits = [
            session
            for session in self._by_id.get(step.session, {}).values()
            if (session.message.stage, session.message.key) == (step.stage, step.key)
            and session.may_send(peer, Step)
        ]
        now = (session for session in fits if session.message.epoch == step.epoch)
        return next(now, fits[0] if fits else None)

    def knows(self, session_id: str) -> bool:
        """Whether anybody has a session by this id here."""
        return session_id in self._by_id

    def by_name(self, name: str, device: int) -> StageSession | None:
        """The session that a worker speaks of."""
        return self._by_name.get((name, device))

    def ended_by(self, message: SessionMessage, peer: str) -> list[StageSession]:
        """The sessions that a CLOSE or CANCEL ends."""
        return [
            session
            for session in self
            if session.message.session == message.session
            and session.message.key == message.key
            and session.message.epoch <= message.epoch
            and session.may_send(peer, type(message))
        ]

    def refused_by(self, fail: Fail, peer: str) -> list[StageSession]:
        """The sessions whose step a stage could not use; a FAIL has no key."""
        return [
            session
            for session in self
            if (session.message.session, session.message.epoch) == (fail.session, fail.epoch)
            and session.may_send(peer, Fail)
        ]

    def add(self, session: StageSession) -> None:
        """Take a session in, in place of an older one."""
        opened, client = session.message, session.client
        if old := self.get(client, opened.session, opened.stage):
            self.remove(old)
        self._by_id.setdefault(opened.session, {})[client, opened.stage] = session
        self._sessions[client, opened.session, opened.stage] = session
        self._by_name[session.name, session.device] = session

    def remove(self, session: StageSession) -> None:
        """Forget a session; does nothing if it is gone."""
        opened, client = session.message, session.client
        if self.get(client, opened.session, opened.stage) is not session:
            return
        del self._sessions[client, opened.session, opened.stage]
        del self._by_id[opened.session][client, opened.stage]
        if not self._by_id[opened.session]:
            del self._by_id[opened.session]
        self._by_name.pop((session.name, session.device), None)
        self._removed.set()

    def on_device(self, device: int) -> list[StageSession]:
        """The sessions that a device of ours computes."""
        return [session for session in self._sessions.values() if session.device == device]

    async def until_none_on(self, device: int) -> None:
        """Wait until a device has no session any more."""
        while self.on_device(device):
            self._removed.clear()
            await self._removed.wait()

    def idle(self, now_seconds: float) -> list[StageSession]:
        """The sessions that nobody has used for IDLE_SECONDS."""
        return [session for session in self if now_seconds - session.seen_seconds > IDLE_SECONDS]


def check_open(message: Open, client: str) -> None:
    """Refuse an OPEN that our worker could not be told or would choke on: RemoteProtocolError."""
    if len(name_of(message, client)) > SESSION_CAP:
        raise RemoteProtocolError("The name of a session is too long.")
    if len(message.key) != KEY_BYTES or message.epoch > COUNT_CAP:
        raise RemoteProtocolError(f"A session has a key of {KEY_BYTES} bytes and a small epoch.")
    if len(message.body) % ID_BYTES or len(message.body) > message.capacity * ID_BYTES:
        raise RemoteProtocolError("An OPEN carries more ids than it wants room for.")
    if not all(_is_plain(value) for value in message.sampling.values()):
        raise RemoteProtocolError("A sampling option is neither a value nor a list of values.")
    try:
        Sampling.from_map(message.sampling)
    except BadSampling as error:
        raise RemoteProtocolError(str(error)[:REASON_CAP]) from error


def _is_plain(value: object) -> bool:
    nested = (list, dict)
    return not any(isinstance(each, nested) for each in (value if type(value) is list else [value]))


def name_of(message: Open, client: str) -> str:
    """What our worker calls a client's session; what comes before the epoch outlasts it."""
    mark = hashlib.sha256(client.encode()).hexdigest()[:MARK_DIGITS]
    return f"{message.session}.{mark}:{message.epoch}"


def route_of(message: Open) -> tuple[Hop, ...]:
    """The route of an OPEN; raises RemoteProtocolError unless it covers its layers in order."""
    hops = tuple(_hop_of(entry) for entry in message.route)
    if not hops or message.stage >= len(hops) or hops[0].start != 0:
        raise RemoteProtocolError("An OPEN names no stage of its route.")
    if any(before.end != after.start for before, after in itertools.pairwise(hops)):
        raise RemoteProtocolError("The stages of a route do not follow each other.")
    if not 0 < message.capacity <= CAPACITY_CAP:
        raise RemoteProtocolError(f"A capacity of {message.capacity} tokens is out of range.")
    return hops


def _hop_of(entry: list[Any]) -> Hop:
    match entry:
        case [str(leader), int(start), int(end)] if 0 <= start < end:
            return Hop(leader, start, end)
    raise RemoteProtocolError("A hop of a route is not [leader, start, end].")


def trouble_with(step: Step, session: StageSession | None, peer: str) -> str:
    """The FAIL code that a STEP deserves; "" if it may be computed, "seen" if it is a repeat."""
    if session is None:
        return FailCode.UNKNOWN_SESSION
    if step.key != session.message.key or not session.may_send(peer, Step):
        return FailCode.WRONG_SENDER
    if step.epoch < session.message.epoch:
        return FailCode.STALE_EPOCH
    if step.epoch > session.message.epoch:
        return FailCode.UNKNOWN_SESSION
    is_first = session.next_position == 0
    expected = min(step.position, session.held) if is_first else session.next_position
    is_rewind = step.rewinds > session.rewinds and step.position >= session.known
    if step.rewinds < session.rewinds or (step.position < expected and not is_rewind):
        return "seen"
    if step.position > expected or not _is_sized(step):
        return FailCode.BAD_FRAME
    if step.position + step.tokens > session.message.capacity:
        return FailCode.OVERFLOW
    return ""


def _is_sized(step: Step) -> bool:
    """Whether what follows from a step can travel, however large its figures are."""
    if not 0 < step.tokens <= CHUNK_CAP or len(step.body) > step.tokens * ROW_CAP:
        return False
    if len(step.drafts) >= min(step.tokens, MOST_SPECULATED + 1) or step.rewinds > COUNT_CAP:
        return False
    return len(step.hops) <= step.stage and all(len(hop) == HOP_FIGURES for hop in step.hops)
