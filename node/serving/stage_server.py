"""Frames in, frames out: the stages that this node leads, between the channel and the workers."""

import asyncio
import logging
import random
from dataclasses import dataclass, field, replace

from node.serving.activation_format import IsNarrow, always_full
from node.serving.forwarding import ids_onward, rows_onward
from node.serving.outbox import Outbox
from node.serving.preemption import giving_way, tokens_of
from node.serving.session_table import (
    CAPACITY_CAP,
    ID_BYTES,
    Hop,
    Pending,
    Seat,
    Seats,
    check_open,
    route_of,
    trouble_with,
)
from node.serving.tally import Tally
from node.worker.messages import Broken, Compute, Computed, Failed, Release, Reserve, Reserved
from node.worker.worker_handle import WorkerProcess
from swarm.errors import RemoteProtocolError
from swarm.hardware import WIDEST
from swarm.p2p.channel import Channel
from swarm.p2p.rate_limit import Budget, RateLimit
from swarm.records import Member, StageAdvert
from swarm.wire.messages import Busy, Cancel, Close, Fail, Message, Moved, Open, Opened, Step, Token
from swarm.wire.rules import FailCode

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5  # at least, and at most twice that: those who wait together part
SESSIONS_PER_RETRY = 16  # of a client here: with every so many it is told to wait once more as long
LEAVE_SECONDS = 1.0
OPENS_PER_SECOND = 200  # of one client
OPEN_BYTES_PER_SECOND = 1 << 20  # of one client: each OPEN brings all ids so far
OPEN_BYTES_AT_ONCE = 1 << 23
WAIT_SECONDS = 3.0  # that room is kept for a client which found none, from those that hold more
INTERNAL = FailCode.INTERNAL, "This stage stumbled over the session; its log says why."


@dataclass(slots=True)
class LedStage:
    """A stage that this node leads, on one of its workers."""

    worker: WorkerProcess
    start: int
    end: int
    members: tuple[Member, ...]
    step_seconds: float
    free_tokens: int  # as of the worker's last answer: it says nothing of released sessions
    dtype: str = WIDEST  # of the rows that it makes
    all_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.all_tokens = self.free_tokens


class Server:
    """Serves sessions on the led stages; owns every session's state at this node."""

    def __init__(
        self,
        channel: Channel,
        digest: str,
        is_narrow: IsNarrow = always_full,
        *,
        context: int = CAPACITY_CAP,
        opens_per_second: int = OPENS_PER_SECOND,
    ) -> None:
        self._channel = channel
        self._digest = digest
        self._is_narrow = is_narrow
        self._context = context  # tokens: beyond it a model computes nonsense, for others too
        self._stages: dict[int, LedStage] = {}
        self._seats = Seats()
        self._rate = RateLimit(opens_per_second)
        self.tally = Tally()
        self._budget = Budget(OPEN_BYTES_PER_SECOND, OPEN_BYTES_AT_ONCE)
        self._waiting: dict[str, float] = {}  # clients without room: until when it is kept
        self._outbox = Outbox(channel, self.on_lost, self._end_unsent)
        channel.listen(self.on_message, self.on_lost)

    # ------------------------------------------------------------------ stages

    def serve(self, device: int, stage: LedStage) -> None:
        """Take sessions for `stage` from now on."""
        self._stages[device] = stage

    def retire(self, device: int, code: str = "") -> None:
        """Take no more sessions on `device`; clients hear MOVED, or FAIL with `code`."""
        self._stages.pop(device, None)
        for seat in self._seats:
            if seat.device == device:
                self._dismiss(seat, code)

    def adverts(self) -> list[StageAdvert]:
        """What clients may route by, as of now."""
        return [
            self._advert_of(device, stage)
            for device, stage in self._stages.items()
            if not stage.worker.is_silent
        ]

    def _advert_of(self, device: int, stage: LedStage) -> StageAdvert:
        sessions = sum(seat.device == device for seat in self._seats)
        return StageAdvert(
            start=stage.start,
            end=stage.end,
            members=list(stage.members),
            step_seconds=stage.step_seconds,
            free_tokens=stage.free_tokens if sessions else stage.all_tokens,
            sessions=sessions,
        )

    @property
    def sessions(self) -> int:
        """How many sessions are seated here."""
        return len(self._seats)

    def free_idle(self) -> None:
        """Free the sessions whose clients have gone silent."""
        for seat in self._seats.idle(_now()):
            self._free(seat)

    async def close(self) -> None:
        """Dismiss every session and wait for what is being sent."""
        for device in list(self._stages):
            self.retire(device)
        await self._outbox.close(LEAVE_SECONDS)

    # ------------------------------------------------------------------ from the channel

    def on_message(self, peer: str, message: Message) -> None:
        """Act on one message of a peer; whatever goes wrong ends its own session at the most.

        Raises RemoteProtocolError for what breaks the protocol.
        """
        try:
            self._hear(peer, message)
        except RemoteProtocolError:
            raise
        except Exception:  # an island: the channel would end the stream of all its sessions
            logger.exception("a %s of %s was not understood", type(message).__name__, peer)
            if isinstance(message, Open | Step):
                self._end_own(peer, message)

    def _hear(self, peer: str, message: Message) -> None:
        match message:
            case Step():
                self._step(peer, message)
            case Open():
                self._open(peer, message)
            case Close() | Cancel():
                for seat in self._seats.of(message, peer):
                    self._free(seat)
            case Fail():
                self._hear_fail(peer, message)
            case _:
                logger.debug("ignored %s of %s", type(message).__name__, peer)

    def on_lost(self, peer: str, reason: str) -> None:
        """Free the sessions whose client is gone."""
        for seat in self._seats:
            if seat.client == peer:
                logger.info("client %s is lost (%s): its session is freed", peer, reason)
                self._free(seat)

    def _open(self, peer: str, message: Open) -> None:
        try:
            check_open(message, peer)
            route = route_of(message)
        except RemoteProtocolError as error:
            return self._fail(peer, message, FailCode.BAD_FRAME, str(error))
        old = self._seats.get(peer, message.session, message.stage)
        if old and message.epoch <= old.message.epoch:
            return self._fail(peer, message, FailCode.STALE_EPOCH, "A newer epoch is open.")
        if message.model != self._digest:
            return self._fail(
                peer, message, FailCode.WRONG_MODEL, "This swarm serves another model."
            )
        if message.capacity > self._context:
            reason = f"The model's context is {self._context} tokens."
            return self._fail(peer, message, FailCode.OVERFLOW, reason)
        device = self._device_of(route[message.stage])
        if device is None:
            return self._fail(
                peer, message, FailCode.STAGE_LOST, "The stage is not served here now."
            )
        if old:
            self._free(old)
        if not self._rate.allows(peer) or not self._budget.takes(peer, len(message.body)):
            return self._busy(peer, message, "You open sessions too quickly.")
        known = len(message.body) // ID_BYTES
        seat = Seat(replace(message, body=b""), peer, route, device, _now(), known=known)
        if trouble := self._no_room_for(seat):
            return self._busy(peer, message, trouble)
        seat.narrow = self._narrows(seat)
        self._seats.add(seat)  # whether its tokens are free the worker knows, after its releases
        order = _reserve_of(seat, message.body, returning=old is not None)
        self._stages[device].worker.order(order)
        return None

    def _no_room_for(self, seat: Seat) -> str:
        """Why a session cannot be seated, as far as we know without the worker; "" if it can."""
        if self._seats.is_full:
            self._make_room(seat)
        if self._seats.is_full or seat.message.capacity > self._stages[seat.device].all_tokens:
            return "There is no room for the session."
        return "Others that hold less wait for room." if self._must_wait(seat) else ""

    def _make_room(self, asking: Seat) -> None:
        """End sessions of the client that holds most, if `asking` finds none and holds less.

        They hear BUSY, as sessions do that outgrow their room, and come again.
        """
        self._waiting = {peer: until for peer, until in self._waiting.items() if until > _now()}
        if giving := giving_way((s for s in self._seats if s.device == asking.device), asking):
            self._waiting[asking.client] = _now() + WAIT_SECONDS
        for seat in giving:
            logger.info("a session of %s gives way to one of %s", seat.client, asking.client)
            self._end(seat, FailCode.NO_ROOM, "Others that hold less need the room.")

    def _must_wait(self, asking: Seat) -> bool:
        """Whether room is kept for others, and the client holds its part already."""
        now = _now()
        waiting = {client for client, until in self._waiting.items() if until > now}
        if not waiting - {asking.client}:
            return False
        there = [seat for seat in self._seats if seat.device == asking.device]
        clients = waiting | {seat.client for seat in there} | {asking.client}
        held = sum(tokens_of(seat) for seat in there if seat.client == asking.client)
        return held + tokens_of(asking) > self._stages[asking.device].all_tokens / len(clients)

    def _device_of(self, hop: Hop) -> int | None:
        if hop.leader != self._channel.peer:
            return None
        fits = [
            device
            for device, stage in self._stages.items()
            if (stage.start, stage.end) == (hop.start, hop.end) and not stage.worker.is_silent
        ]
        return max(fits, key=lambda device: self._stages[device].free_tokens, default=None)

    def _narrows(self, seat: Seat) -> bool:
        """Whether the session's rows leave as int8: neither ids nor rows for ourselves do."""
        leader = seat.route[seat.next_stage].leader
        if seat.is_last or leader == self._channel.peer:
            return False
        stage = self._stages[seat.device]
        return self._is_narrow(leader, stage.step_seconds, stage.dtype)

    def _step(self, peer: str, step: Step) -> None:
        seat = self._seats.meant_by(step, peer)
        trouble = trouble_with(step, seat, peer)
        if trouble == "seen":
            return
        if seat is None or trouble:
            # A FAIL names no key: of a step for nobody it would end whose id the step has, too.
            if trouble != FailCode.STALE_EPOCH and (seat or not self._seats.knows(step.session)):
                reason = f"A step at {step.position} does not fit the session."
                self._fail(seat.client if seat else peer, step, trouble, reason)
            return
        worker = self._stages[seat.device].worker
        if worker.is_behind:
            self._busy(seat.client, seat.message, "The worker is behind.")
            self._free(seat)
            return
        network = self._channel.round_trip_seconds(peer) or 0.0
        seat.accept(step, network / 2, _now())
        rows = (step.position, step.tokens, step.sample, step.dtype, step.drafts)
        worker.order(Compute(seat.name, *rows, seat.narrow, body=step.body))

    def _hear_fail(self, peer: str, fail: Fail) -> None:
        """A stage could not use our step: only we know whose it was."""
        for seat in self._seats:
            told = (seat.message.session, seat.message.epoch) == (fail.session, fail.epoch)
            if told and peer == seat.route[seat.next_stage].leader and peer != seat.client:
                self._outbox.refuse(seat.client, replace(fail, peer=peer))

    # ------------------------------------------------------------------ from the workers

    def on_answer(self, device: int, answer: Message) -> None:
        """Act on one answer of a worker; whatever goes wrong ends its own session at the most."""
        try:
            self._hear_worker(device, answer)
        except Exception:  # an island: the worker computes for all the other sessions, too
            logger.exception("what follows from a %s failed", type(answer).__name__)
            if seat := self._seats.named(getattr(answer, "session", ""), device):
                self._end(seat, *INTERNAL)

    def _hear_worker(self, device: int, answer: Message) -> None:
        match answer:
            case Computed():
                self._note_free(device, answer.free_tokens)
                if seat := self._seats.named(answer.session, device):
                    self._computed(seat, answer)
            case Reserved():
                if not answer.code:
                    self._note_free(device, answer.free_tokens)
                if seat := self._seats.named(answer.session, device):
                    self._reserved(seat, answer)
            case Failed():
                if seat := self._seats.named(answer.session, device):
                    if answer.code == FailCode.NO_ROOM:
                        self._make_room(seat)
                    self._end(seat, answer.code, answer.reason)
            case Broken():
                self.retire(device, FailCode.STAGE_LOST)

    def _note_free(self, device: int, tokens: int) -> None:
        if stage := self._stages.get(device):
            stage.free_tokens = tokens

    def _reserved(self, seat: Seat, answer: Reserved) -> None:
        opened = seat.message
        if answer.code:
            self._seats.remove(seat)
            if answer.code == FailCode.NO_ROOM:
                self._make_room(seat)
            self._refuse(seat, answer.code, answer.reason)
            return
        self._waiting.pop(seat.client, None)
        seat.held = answer.held
        self.tally.sessions += 1
        reply = Opened(opened.session, opened.epoch, opened.key, opened.stage, answer.held)
        self._outbox.send(seat.client, reply)

    def _computed(self, seat: Seat, answer: Computed) -> None:
        self.tally.tokens += answer.tokens
        pending = seat.pending.pop(answer.position, None) or Pending()
        if rest := pending.after(answer.tokens):
            seat.pending[answer.position + answer.tokens] = rest
        if not seat.is_last:
            self._send_step(seat, rows_onward(seat, answer, pending))
        elif answer.ids:
            token, ring = ids_onward(seat, answer, pending, _now())
            self._outbox.send(seat.client, token)
            if ring:
                self._send_step(seat, ring)

    # ------------------------------------------------------------------ out

    def _send_step(self, seat: Seat, step: Step) -> None:
        leader = seat.route[step.stage].leader
        if leader == self._channel.peer:
            self.on_message(leader, step)
        else:
            self._outbox.pass_on(leader, seat.client, step)

    def _end(self, seat: Seat, code: str, reason: str) -> None:
        self._free(seat)
        self._refuse(seat, code, reason)

    def _end_own(self, peer: str, message: Open | Step) -> None:
        """End the session that a message is about, if it is the sender's."""
        seat = (
            self._seats.meant_by(message, peer)
            if isinstance(message, Step)
            else self._seats.get(peer, message.session, message.stage)
        )
        if seat and seat.is_meant(message, peer):
            self._end(seat, *INTERNAL)
        else:
            self._fail(peer, message, *INTERNAL)

    def _end_unsent(self, message: Message) -> None:
        """End the session that cannot hear what follows from its step."""
        if isinstance(message, Step | Token | Opened):
            for seat in self._seats:
                if seat.is_of(message):
                    self._end(seat, *INTERNAL)

    def _fail(self, peer: str, message: Open | Step, code: str, reason: str) -> None:
        self._outbox.refuse(peer, Fail(message.session, message.epoch, code, reason))

    def _refuse(self, seat: Seat, code: str, reason: str) -> None:
        if code == FailCode.NO_ROOM:
            self._busy(seat.client, seat.message, reason)
        else:
            self._fail(seat.client, seat.message, code, reason)

    def _busy(self, peer: str, opened: Open, reason: str) -> None:
        common = (opened.session, opened.epoch, opened.key, opened.stage)
        seconds = RETRY_SECONDS * random.uniform(1, 2) * self._patience_of(peer)
        self._outbox.refuse(peer, Busy(*common, seconds, reason))

    def _patience_of(self, peer: str) -> float:
        """How much longer than others a client waits: one that holds much, unless room is kept."""
        if self._waiting.get(peer, 0.0) > _now():
            return 1.0
        return 1 + sum(seat.client == peer for seat in self._seats) / SESSIONS_PER_RETRY

    def _dismiss(self, seat: Seat, code: str) -> None:
        opened = seat.message
        if code:
            self._fail(seat.client, opened, code, "The stage is lost.")
        else:
            self._outbox.send(seat.client, Moved(opened.session, opened.epoch))
        self._free(seat)

    def _free(self, seat: Seat) -> None:
        self._seats.remove(seat)
        if stage := self._stages.get(seat.device):
            stage.worker.order(Release(seat.name))


def _reserve_of(seat: Seat, body: bytes | memoryview, *, returning: bool) -> Reserve:
    opened = seat.message
    return Reserve(
        session=seat.name,
        capacity=opened.capacity,
        generated=opened.generated,
        sampling=opened.sampling if seat.is_last else {},
        owner=seat.owner,
        client=seat.client,
        returning=returning,
        body=body,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
