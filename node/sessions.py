"""Sessions at this node: who may send what to which, decided without I/O."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from swarm.errors import RemoteProtocolError
from swarm.wire import Open, SessionMessage, Step

IDLE_SECONDS = 60.0  # a session without a frame for longer is freed
SESSIONS_CAP = 1024
CAPACITY_CAP = 1 << 20  # tokens
Hops = list[list[int]]


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of a route, by its leader."""

    leader: str
    start: int
    end: int


@dataclass(slots=True)
class Seat:
    """One session at one stage of ours."""

    message: Open
    client: str
    route: tuple[Hop, ...]
    device: int
    seen_seconds: float
    next_position: int = 0
    pending: dict[int, tuple[Hops, int]] = field(default_factory=dict)  # hops so far, network us

    @property
    def name(self) -> str:
        """What the worker calls the session: unlike epochs never mix."""
        return f"{self.message.session}:{self.message.epoch}"

    @property
    def hop(self) -> Hop:
        """The stage of ours that the session uses."""
        return self.route[self.message.stage]

    @property
    def is_last(self) -> bool:
        """Whether the session's tokens are sampled here."""
        return self.message.stage == len(self.route) - 1

    @property
    def next_stage(self) -> int:
        """The hop that follows; after the last one the ring begins again."""
        return (self.message.stage + 1) % len(self.route)

    def may_send(self, peer: str) -> bool:
        """Whether `peer` is the client or the hop before this one."""
        return peer in (self.client, self.route[self.message.stage - 1].leader)


class Seats:
    """Every session at this node, by session id; the newest epoch wins."""

    def __init__(self) -> None:
        self._seats: dict[tuple[str, int], Seat] = {}

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    @property
    def is_full(self) -> bool:
        """Whether another session would exceed the cap."""
        return len(self._seats) >= SESSIONS_CAP

    def get(self, session: str, stage: int) -> Seat | None:
        """The seat of a session at one hop of its route."""
        return self._seats.get((session, stage))

    def named(self, name: str, device: int) -> Seat | None:
        """The seat that a worker speaks of."""
        found = (seat for seat in self._seats.values() if seat.device == device)
        return next((seat for seat in found if seat.name == name), None)

    def of(self, message: SessionMessage, peer: str) -> list[Seat]:
        """The seats that a client's CLOSE or CANCEL ends."""
        return [
            seat
            for seat in self
            if seat.message.session == message.session
            and seat.message.key == message.key
            and seat.message.epoch <= message.epoch
            and seat.client == peer
        ]

    def add(self, seat: Seat) -> None:
        """Seat a session."""
        self._seats[seat.message.session, seat.message.stage] = seat

    def remove(self, seat: Seat) -> None:
        """Forget a session; does nothing if it is gone."""
        self._seats.pop((seat.message.session, seat.message.stage), None)

    def idle(self, now_seconds: float) -> list[Seat]:
        """The seats that nobody has used for IDLE_SECONDS."""
        return [seat for seat in self if now_seconds - seat.seen_seconds > IDLE_SECONDS]


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


def trouble_with(step: Step, seat: Seat | None, peer: str) -> str:
    """The FAIL code that a STEP deserves; "" if it may be computed, "seen" if it is a repeat."""
    if seat is None:
        return "unknown_session"
    if step.epoch < seat.message.epoch:
        return "stale_epoch"
    if step.epoch > seat.message.epoch:
        return "unknown_session"
    if step.key != seat.message.key or not seat.may_send(peer):
        return "wrong_sender"
    if step.position < seat.next_position:
        return "seen"
    if step.position > seat.next_position or step.tokens < 1:
        return "bad_frame"
    if step.position + step.tokens > seat.message.capacity:
        return "overflow"
    return ""
