"""StageServer: the stages that this node leads, between the channel and the workers."""

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass, field, replace

from node.serving.activation_format import UseInt8, always_full
from node.serving.forwarding import next_stage_step, token_and_ring_step
from node.serving.outbox import Outbox
from node.serving.preemption import kv_tokens_of, sessions_to_preempt
from node.serving.service_counters import ServiceCounters
from node.serving.session_table import (
    CAPACITY_CAP,
    ID_BYTES,
    Hop,
    InFlightStep,
    SessionTable,
    StageSession,
    check_open,
    route_of,
    trouble_with,
)
from node.serving.stage_pace import StagePace
from node.worker.messages import Broken, Compute, Computed, Failed, Release, Reserve, Reserved
from node.worker.worker_handle import WorkerProcess
from swarm.errors import RemoteProtocolError
from swarm.hardware import WIDEST
from swarm.p2p.channel import Channel
from swarm.p2p.rate_limit import Budget, RateLimit
from swarm.records import Member, StageAdvert
from swarm.wire.messages import Busy, Cancel, Close, Fail, Message, Moved, Open, Opened, Step, Token
from swarm.wire.rules import FailCode, Side, is_heard

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5  # at least, and at most twice that: those who wait together part
SESSIONS_PER_RETRY = 16  # of a client here: with every so many it is told to wait once more as long
LEAVE_SECONDS = 1.0
DRAIN_SECONDS = 3.0  # that a stage which leaves goes on serving who has not moved yet
OPENS_PER_SECOND = 200  # of one client
OPEN_BYTES_PER_SECOND = 1 << 20  # of one client: each OPEN brings all ids so far
OPEN_BYTES_AT_ONCE = 1 << 23
WAIT_SECONDS = 3.0  # that room is kept for a client which found none, from those that hold more
DISMISSED = {
    FailCode.LEAVING: "The stage is leaving.",
    FailCode.STAGE_LOST: "The stage is lost.",
}
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
    is_draining: bool = False  # it takes no more sessions, and serves those that it has
    all_tokens: int = field(init=False)
    pace: StagePace = field(init=False)

    @property
    def is_open(self) -> bool:
        """Whether it takes sessions."""
        return not self.is_draining and not self.worker.is_silent

    def __post_init__(self) -> None:
        self.all_tokens = self.free_tokens
        self.pace = StagePace(self.step_seconds)


class StageServer:
    """Serves sessions on the led stages; owns every session's state at this node."""

    def __init__(
        self,
        channel: Channel,
        digest: str,
        use_int8: UseInt8 = always_full,
        *,
        context: int = CAPACITY_CAP,
        opens_per_second: int = OPENS_PER_SECOND,
    ) -> None:
        self._channel = channel
        self._digest = digest
        self._use_int8 = use_int8
        self._context = context  # tokens: beyond it a model computes nonsense, for others too
        self._stages: dict[int, LedStage] = {}
        self._sessions = SessionTable()
        self._rate = RateLimit(opens_per_second)
        self.counters = ServiceCounters()
        self._budget = Budget(OPEN_BYTES_PER_SECOND, OPEN_BYTES_AT_ONCE)
        self._waiting: dict[str, float] = {}  # clients without room: until when it is kept
        self._outbox = Outbox(channel, self.on_lost, self._end_unsent)
        channel.listen(self.on_message, self.on_lost)

    # ------------------------------------------------------------------ stages

    def serve(self, device: int, stage: LedStage) -> None:
        """Take sessions for `stage` from now on."""
        self._stages[device] = stage

    def retire(self, device: int, code: FailCode = FailCode.LEAVING) -> None:
        """Serve nobody on `device` any more; clients hear FAIL with `code`."""
        self._stages.pop(device, None)
        for session in self._sessions.on_device(device):
            self._dismiss(session, code)

    async def drain(self, device: int, seconds: float = DRAIN_SECONDS) -> None:
        """Take no more sessions on `device`, and serve those there until they have moved away.

        Clients hear MOVED at once, and FAIL if they are still there after so many seconds.
        """
        stage = self._stages.get(device)
        if stage is None:
            return
        if not stage.is_draining:
            stage.is_draining = True
            for session in self._sessions.on_device(device):
                opened = session.message
                self._outbox.send(session.client, Moved(opened.session, opened.epoch))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._sessions.until_none_on(device)
        if self._stages.get(device) is stage:  # else it was lost meanwhile
            self.retire(device, FailCode.LEAVING)

    def adverts(self) -> list[StageAdvert]:
        """What clients may route by, as of now."""
        return [
            self._advert_of(device, stage)
            for device, stage in self._stages.items()
            if stage.is_open
        ]

    def _advert_of(self, device: int, stage: LedStage) -> StageAdvert:
        sessions = len(self._sessions.on_device(device))
        return StageAdvert(
            start=stage.start,
            end=stage.end,
            members=list(stage.members),
            step_seconds=stage.pace.step_seconds(_now()),
            free_tokens=stage.free_tokens if sessions else stage.all_tokens,
            sessions=sessions,
        )

    @property
    def sessions(self) -> int:
        """How many sessions are open here."""
        return len(self._sessions)

    def free_idle(self) -> None:
        """Free the sessions whose clients have gone silent."""
        for session in self._sessions.idle(_now()):
            self._free(session)

    async def close(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Let every session move away, and wait for what is being sent."""
        await asyncio.gather(*(self.drain(device, drain_seconds) for device in self._stages))
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
        if not is_heard(type(message), Side.STAGE):
            logger.debug("ignored %s of %s", type(message).__name__, peer)
            return
        match message:
            case Step():
                self._step(peer, message)
            case Open():
                self._open(peer, message)
            case Close() | Cancel():
                for session in self._sessions.ended_by(message, peer):
                    self._free(session)
            case Fail():  # only we know whose step it was
                for session in self._sessions.refused_by(message, peer):
                    self._outbox.refuse(session.client, replace(message, peer=peer))

    def on_lost(self, peer: str, reason: str) -> None:
        """Free the sessions whose client is gone; clients carry what the peer has not confirmed."""
        self._outbox.lose(peer)
        for session in self._sessions:
            if session.client == peer:
                logger.info("client %s is lost (%s): its session is freed", peer, reason)
                self._free(session)

    def _open(self, peer: str, message: Open) -> None:
        try:
            check_open(message, peer)
            route = route_of(message)
        except RemoteProtocolError as error:
            return self._fail(peer, message, FailCode.BAD_FRAME, str(error))
        old = self._sessions.get(peer, message.session, message.stage)
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
        session = StageSession(replace(message, body=b""), peer, route, device, _now(), known=known)
        if trouble := self._no_room_for(session):
            return self._busy(peer, message, trouble)
        session.uses_int8 = self._sends_int8(session)
        self._sessions.add(
            session
        )  # whether its tokens are free the worker knows, after its releases
        order = _reserve_of(session, message.body, returning=old is not None)
        self._stages[device].worker.order(order)
        return None

    def _no_room_for(self, session: StageSession) -> str:
        """Why a session cannot be taken, as far as we know without the worker; "" if it can."""
        if self._sessions.is_full:
            self._preempt_for(session)
        if (
            self._sessions.is_full
            or session.message.capacity > self._stages[session.device].all_tokens
        ):
            return "There is no room for the session."
        return "Others that hold less wait for room." if self._must_wait(session) else ""

    def _preempt_for(self, asking: StageSession) -> None:
        """End sessions of the client that holds most, if `asking` finds none and holds less.

        They hear BUSY, as sessions do that outgrow their room, and come again.
        """
        self._waiting = {peer: until for peer, until in self._waiting.items() if until > _now()}
        if preempted := sessions_to_preempt(
            (s for s in self._sessions if s.device == asking.device), asking
        ):
            self._waiting[asking.client] = _now() + WAIT_SECONDS
        for session in preempted:
            logger.info("a session of %s gives way to one of %s", session.client, asking.client)
            self._end(session, FailCode.NO_ROOM, "Others that hold less need the room.")

    def _must_wait(self, asking: StageSession) -> bool:
        """Whether room is kept for others, and the client holds its part already."""
        now = _now()
        waiting = {client for client, until in self._waiting.items() if until > now}
        if not waiting - {asking.client}:
            return False
        there = [session for session in self._sessions if session.device == asking.device]
        clients = waiting | {session.client for session in there} | {asking.client}
        held = sum(kv_tokens_of(session) for session in there if session.client == asking.client)
        return held + kv_tokens_of(asking) > self._stages[asking.device].all_tokens / len(clients)

    def _device_of(self, hop: Hop) -> int | None:
        if hop.leader != self._channel.peer:
            return None
        fits = [
            device
            for device, stage in self._stages.items()
            if (stage.start, stage.end) == (hop.start, hop.end) and stage.is_open
        ]
        return max(fits, key=lambda device: self._stages[device].free_tokens, default=None)

    def _sends_int8(self, session: StageSession) -> bool:
        """Whether the session's rows leave as int8: neither ids nor rows for ourselves do."""
        leader = session.route[session.next_stage].leader
        if session.is_last or leader == self._channel.peer:
            return False
        stage = self._stages[session.device]
        return self._use_int8(leader, stage.step_seconds, stage.dtype)

    def _step(self, peer: str, step: Step) -> None:
        session = self._sessions.for_step(step, peer)
        trouble = trouble_with(step, session, peer)
        if trouble == "seen":
            return
        if session is None or trouble:
            # A FAIL names no key: of a step for nobody it would end whose id the step has, too.
            if trouble != FailCode.STALE_EPOCH and (
                session or not self._sessions.knows(step.session)
            ):
                reason = f"A step at {step.position} does not fit the session."
                self._fail(session.client if session else peer, step, trouble, reason)
            return
        worker = self._stages[session.device].worker
        if worker.is_behind:
            self._busy(session.client, session.message, "The worker is behind.")
            self._free(session)
            return
        network = self._channel.round_trip_seconds(peer) or 0.0
        session.accept(step, network / 2, _now())
        rows = (step.position, step.tokens, step.sample, step.dtype, step.drafts)
        worker.order(Compute(session.name, *rows, session.uses_int8, body=step.body))

    # ------------------------------------------------------------------ from the workers

    def on_answer(self, device: int, answer: Message) -> None:
        """Act on one answer of a worker; whatever goes wrong ends its own session at the most."""
        try:
            self._hear_worker(device, answer)
        except Exception:  # an island: the worker computes for all the other sessions, too
            logger.exception("what follows from a %s failed", type(answer).__name__)
            if session := self._sessions.by_name(getattr(answer, "session", ""), device):
                self._end(session, *INTERNAL)

    def _hear_worker(self, device: int, answer: Message) -> None:
        match answer:
            case Computed():
                self._note_free(device, answer.free_tokens)
                self._note_pace(device, answer)
                if session := self._sessions.by_name(answer.session, device):
                    self._computed(session, answer)
            case Reserved():
                if not answer.code:
                    self._note_free(device, answer.free_tokens)
                if session := self._sessions.by_name(answer.session, device):
                    self._reserved(session, answer)
            case Failed():
                if session := self._sessions.by_name(answer.session, device):
                    if answer.code == FailCode.NO_ROOM:
                        self._preempt_for(session)
                    self._end(session, answer.code, answer.reason)
            case Broken():
                self.retire(device, FailCode.STAGE_LOST)

    def _note_free(self, device: int, tokens: int) -> None:
        if stage := self._stages.get(device):
            stage.free_tokens = tokens

    def _note_pace(self, device: int, answer: Computed) -> None:
        if stage := self._stages.get(device):
            stage.pace.note(answer.tokens, answer.compute_us / 1e6, len(self._sessions), _now())

    def _reserved(self, session: StageSession, answer: Reserved) -> None:
        opened = session.message
        if answer.code:
            self._sessions.remove(session)
            if answer.code == FailCode.NO_ROOM:
                self._preempt_for(session)
            self._refuse(session, answer.code, answer.reason)
            return
        self._waiting.pop(session.client, None)
        session.held = answer.held
        self.counters.sessions += 1
        reply = Opened(opened.session, opened.epoch, opened.key, opened.stage, answer.held)
        self._outbox.send(session.client, reply)

    def _computed(self, session: StageSession, answer: Computed) -> None:
        self.counters.tokens += answer.tokens
        in_flight = session.in_flight.pop(answer.position, None) or InFlightStep()
        if rest := in_flight.after(answer.tokens):
            session.in_flight[answer.position + answer.tokens] = rest
        if not session.is_last:
            self._send_step(session, next_stage_step(session, answer, in_flight))
        elif answer.ids:
            token, ring = token_and_ring_step(session, answer, in_flight, _now())
            self._outbox.send(session.client, token)
            if ring:
                self._send_step(session, ring)

    # ------------------------------------------------------------------ out

    def _send_step(self, session: StageSession, step: Step) -> None:
        leader = session.route[step.stage].leader
        if leader == self._channel.peer:
            self.on_message(leader, step)
        else:
            self._outbox.pass_on(leader, session.client, step)

    def _end(self, session: StageSession, code: str, reason: str) -> None:
        self._free(session)
        self._refuse(session, code, reason)

    def _end_own(self, peer: str, message: Open | Step) -> None:
        """End the session that a message is about, if it is the sender's."""
        session = (
            self._sessions.for_step(message, peer)
            if isinstance(message, Step)
            else self._sessions.get(peer, message.session, message.stage)
        )
        if session and session.is_meant(message, peer):
            self._end(session, *INTERNAL)
        else:
            self._fail(peer, message, *INTERNAL)

    def _end_unsent(self, message: Message) -> None:
        """End the session that cannot hear what follows from its step."""
        if isinstance(message, Step | Token | Opened):
            for session in self._sessions:
                if session.is_of(message):
                    self._end(session, *INTERNAL)

    def _fail(self, peer: str, message: Open | Step, code: str, reason: str) -> None:
        self._outbox.refuse(peer, Fail(message.session, message.epoch, code, reason))

    def _refuse(self, session: StageSession, code: str, reason: str) -> None:
        if code == FailCode.NO_ROOM:
            self._busy(session.client, session.message, reason)
        else:
            self._fail(session.client, session.message, code, reason)

    def _busy(self, peer: str, opened: Open, reason: str) -> None:
        common = (opened.session, opened.epoch, opened.key, opened.stage)
        seconds = RETRY_SECONDS * random.uniform(1, 2) * self._patience_of(peer)
        self._outbox.refuse(peer, Busy(*common, seconds, reason))

    def _patience_of(self, peer: str) -> float:
        """How much longer than others a client waits: one that holds much, unless room is kept."""
        if self._waiting.get(peer, 0.0) > _now():
            return 1.0
        return 1 + sum(session.client == peer for session in self._sessions) / SESSIONS_PER_RETRY

    def _dismiss(self, session: StageSession, code: FailCode) -> None:
        self._fail(session.client, session.message, code, DISMISSED[code])
        self._free(session)

    def _free(self, session: StageSession) -> None:
        self._sessions.remove(session)
        if stage := self._stages.get(session.device):
            stage.worker.order(Release(session.name))


def _reserve_of(session: StageSession, body: bytes | memoryview, *, returning: bool) -> Reserve:
    opened = session.message
    return Reserve(
        session=session.name,
        capacity=opened.capacity,
        generated=opened.generated,
        sampling=opened.sampling if session.is_last else {},
        owner=session.owner,
        client=session.client,
        returning=returning,
        body=body,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
