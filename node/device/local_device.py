"""One device of ours: its worker, the shard that it holds, and the group that it forms for it."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import accumulate

import msgpack

from node.control.plan_store import PlanStore
from node.device.endpoint import Reach
from node.device.group_rendezvous import GroupRendezvous
from node.device.group_request import GroupRequest, GroupWord
from node.device.make_before_break import Grip
from node.device.shard_policy import Drop, Keep, Lead, ShardDuty, ShardFacts, next_shard_duty
from node.device.weight_fetch import WeightFetch
from node.serving.stage_server import DRAIN_SECONDS, LedStage, StageServer
from node.worker.messages import Broken, Following, Load, Loaded, Need, Progress, Rank, Unload
from node.worker.worker_handle import WorkerProcess
from swarm.checkpoint.weight_store import WeightStore
from swarm.errors import PeerError, PeerRefused, SwarmError
from swarm.formatting import bytes_text
from swarm.p2p.channel import Channel
from swarm.plan import Assignment, Pipeline, Shard
from swarm.records import Advert, Member, Trouble
from swarm.wire.messages import Message
from swarm.wire.rules import FailCode

logger = logging.getLogger(__name__)

RESTART_SECONDS = 2.0
STEADY_SECONDS = 60.0  # served alone for so long: its loss is no sign that it cannot be loaded
ANSWER_SECONDS = 1.0  # for a leader's answer, besides the time that its sessions take to move
STALLED_SECONDS = 15.0  # without progress, and the worker computes nothing: others hear of it
STALLED_WORDS = "its load has come to a halt"
TROUBLE_CAP = 100  # characters of a cause that others are told
FOLDERS = re.compile(r"(?<![^\s'\"(])(/[^\s/:'\"]+)*/(?=[^\s/])")
YIELD_SECONDS = 1.0  # that an owner who wants the device back waits for sessions to move
YIELD_END_SECONDS = 0.3  # and for the worker to end by itself: memory is free within 2 s


class Presence(Enum):
    """Whether the owner of a device lets it serve."""

    ON = auto()
    LEAVING = auto()  # sessions move away from it
    OFF = auto()  # it has no worker, and holds no memory


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """What a device needs of its node."""

    channel: Channel
    server: StageServer
    plan_store: PlanStore
    folder: str  # of the model
    store: WeightStore | None  # fills that folder, if it is not whole
    quant: str  # what its weights are held as: "" or "int8"
    host: str  # where group sockets listen
    reach: Reach
    is_serving: Callable[[Pipeline], bool] = lambda _pipeline: False  # all of it, as we see it
    # What others serve, as read since a moment; None if it was not read since.
    others: Callable[[float], list[Advert] | None] = lambda _since: []


@dataclass(slots=True)
class ShardState:
    """The shard that a device holds or loads, and the group it is in."""

    assignment: Assignment
    group: str
    since: float  # its load began, last went on, or ended
    ready: bool = False
    fraction: float = 0.0
    sessions: int = 0  # open in the group, as far as a rank that does not lead is told
    pipeline: Pipeline | None = None  # of the plan that it was loaded for

    @property
    def is_steady(self) -> bool:
        """Whether it has served for long, in a stage of its own: no other rank has to get ready."""
        is_alone = len(self.assignment.stage.shards) == 1
        return self.ready and is_alone and time.monotonic() - self.since >= STEADY_SECONDS


class LocalDevice:
    """A device, told by the plan what to hold; it leads its stage or follows its leader."""

    def __init__(
        self, context: DeviceContext, index: int, memory_bytes: int, worker: WorkerProcess
    ) -> None:
        self._context = context
        self.index = index
        self.id = f"{context.channel.peer}/{index}"
        self.memory_bytes = memory_bytes
        self.worker = worker
        self.presence = Presence.ON
        self.shard_state: ShardState | None = None
        self.loaded: Loaded | None = None
        self.weight_fetch = WeightFetch(worker, context.store, self._go_on)
        self._rendezvous = GroupRendezvous(context.channel, context.reach, worker, context.host)
        self._since = time.monotonic()
        self._restarted_at = 0.0
        self._failures = self._alike = 0
        self._was_steady = False  # the shard that was lost last
        self._cause = ""  # of the last failure
        self._blamed = ""  # the peer for want of whom our group did not form
        self._failed: Assignment | None = None  # the part that failed
        self._failed_loads = 0  # in a row: an accident to what was ready is none
        self._grip = Grip(lambda line: context.is_serving(line), lambda at: context.others(at))
        self._lock = asyncio.Lock()

    # ------------------------------------------------------------------ the next duty

    async def reconcile(self) -> None:
        """Do what the accepted plan asks of this device now."""
        async with self._lock:
            if self.presence is Presence.OFF:
                await self._stay_off()
            elif self.presence is Presence.LEAVING:
                return
            elif self.worker.ended.is_set():
                await self._restart()
            else:
                await self._do(next_shard_duty(self._facts()))

    async def _restart(self) -> None:
        """Start the worker again, not more often than every RESTART_SECONDS."""
        if time.monotonic() - self._restarted_at < RESTART_SECONDS:
            return
        self._restarted_at = time.monotonic()
        try:
            await self.worker.restart()
        except OSError as error:
            logger.warning("the worker of device %d does not start: %s", self.index, error)

    def _facts(self) -> ShardFacts:
        shard_state = self.shard_state
        assigned = self._context.plan_store.assignment_of(self.id)
        return ShardFacts(
            now=time.monotonic(),
            assigned=assigned,
            held=shard_state.assignment if shard_state else None,
            ready=bool(shard_state and shard_state.ready),
            since=shard_state.since if shard_state else self._since,
            failures=self._failures - self._was_steady,
            protected=self._is_protected(),
            alike=self._alike,
            awaited=self._is_awaited(assigned),
        )

    @property
    def gives_way(self) -> bool:
        """Whether a plan has another part for a device that serves."""
        return self._grip.gives_way

    @property
    def dropped_lately(self) -> bool:
        """Whether a plan made us drop what was ready within the dwell time."""
        return self._grip.dropped_lately

    def _is_awaited(self, assigned: Assignment | None) -> bool:
        """Whether others still load what only we serve; they have some time for that."""
        state = self.shard_state
        serving = state.assignment if state and state.ready else None
        plan = self._context.plan_store.plan if serving else None
        return self._grip.is_awaited(serving, assigned, plan)

    def _is_protected(self) -> bool:
        """Whether no plan may take our shard now."""
        state = self.shard_state
        return self._grip.is_protected(state.pipeline if state and state.ready else None)

    async def _do(self, duty: ShardDuty) -> None:
        match duty:
            case Drop():
                await self._drop()
            case Lead(assignment=assignment):
                await self._lead(assignment)
            case Keep():
                return

    # ------------------------------------------------------------------ leaving

    async def _drop(self) -> None:
        """Give up the shard, unless the plan wants it again once its sessions have moved."""
        state = self.shard_state
        await self.leave()
        if state and state is self.shard_state and self._is_wanted_again(state):
            self._serve(state)
            return
        if state and state.ready:
            self._grip.note_drop()
        self.worker.order(Unload(keep=self._context.plan_store.assignment_of(self.id) is not None))
        self._forget()

    def _is_wanted_again(self, state: ShardState) -> bool:
        """Whether a plan has given us back what we drain; a group of several has ended by then."""
        is_whole = state.ready and state.assignment.leads
        return is_whole and not isinstance(next_shard_duty(self._facts()), Drop)

    async def leave(
        self, seconds: float = DRAIN_SECONDS, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        """Serve nobody any more, once those that need our shard have moved, or for long enough."""
        state = self.shard_state
        if state is None or not state.ready or state.assignment.leads:
            await self._context.server.drain(self.index, seconds)
            return
        try:
            timeout = seconds + answer_seconds
            await self._rendezvous.say_leaving(state.assignment, state.group, timeout)
        except SwarmError as error:  # it leaves at the same time, or is of an earlier version
            logger.info("the leader of our group does not let us go: %s", error)

    async def let_go(self, peer: str, request: GroupRequest) -> bytes:
        """Give up a group that one of its members leaves, once nobody needs it any more.

        Raises PeerRefused if it is none of ours.
        """
        state = self.shard_state
        if state is None or state.group != request.group or not _has(state, peer, request.rank):
            raise PeerRefused("This device leads no such group.")
        await self._context.server.drain(self.index)
        async with self._lock:
            if self.shard_state is state:
                self.worker.order(Unload(keep=True))
                self._forget()
        return bytes(msgpack.packb({}))

    # ------------------------------------------------------------------ what the owner wants

    async def pause(self) -> None:
        """Give all memory back: sessions are told to move, and soon after the worker ends."""
        self.presence = Presence.LEAVING
        await self.leave(YIELD_SECONDS, answer_seconds=0.0)
        if self.presence is Presence.LEAVING:  # else it was resumed meanwhile
            self.presence = Presence.OFF
            await self._end_worker()

    def resume(self) -> None:
        """Serve again: the next duty starts a worker, and no earlier failure delays it."""
        self.presence = Presence.ON
        self._restarted_at = 0.0
        self._failures = self._alike = self._failed_loads = 0

    async def _stay_off(self) -> None:
        """End what a duty that was on the way has begun all the same."""
        if self.shard_state is not None or not self.worker.ended.is_set():
            await self._end_worker()

    async def _end_worker(self) -> None:
        await self.worker.close(YIELD_END_SECONDS)
        self._context.server.retire(self.index, FailCode.LEAVING)
        self._forget()

    # ------------------------------------------------------------------ leading

    async def _lead(self, assignment: Assignment) -> None:
        group = secrets.token_hex(8)
        self.shard_state = self._begin(assignment, group)
        try:
            ranks = await self._rendezvous.lead(assignment, group)
        except SwarmError as error:
            logger.info("group of [%d,%d): %s", assignment.stage.start, assignment.stage.end, error)
            self._lose(f"its group was not formed: {error}")
            self._blamed = error.peer if isinstance(error, PeerError) else ""
            return
        self._load(group, ranks)

    def _begin(self, assignment: Assignment, group: str) -> ShardState:
        line = self._context.plan_store.pipeline_of(self.id)
        return ShardState(assignment, group, time.monotonic(), pipeline=line)

    # ------------------------------------------------------------------ following

    async def called(self, peer: str, request: GroupRequest) -> bytes:
        """Answer the leader of our stage; raises PeerRefused if the plan says otherwise."""
        async with self._lock:
            if self.presence is not Presence.ON:
                raise PeerRefused("The owner of this device has paused it.")
            assignment = self._assignment_for(peer, request)
            if request.word == GroupWord.PREPARE:
                await self._make_way(assignment)
                self.shard_state = self._begin(assignment, request.group)
                return (await self._rendezvous.listen(request.group)).to_bytes()
            if self.shard_state is None or self.shard_state.group != request.group:
                raise PeerRefused("This group is not the one that we prepared.")
            endpoints = request.require_endpoints(len(assignment.stage.shards))
            self._load(request.group, await self._rendezvous.ranks(assignment, endpoints))
            return bytes(msgpack.packb({}))

    def expects(self, peer: str, request: GroupRequest) -> bool:
        """Whether the accepted plan says what a leader asks."""
        try:
            self._assignment_for(peer, request)
        except PeerRefused:
            return False
        return True

    def _assignment_for(self, peer: str, request: GroupRequest) -> Assignment:
        return request.require_fit(peer, self._context.plan_store.assignment_of(self.id))

    async def _make_way(self, assignment: Assignment) -> None:
        """Give up what we hold for a new group; raises PeerRefused if it is to be kept."""
        state = self.shard_state
        if state and state.ready and state.assignment != assignment:
            if self._is_protected() or self._is_awaited(assignment):
                raise PeerRefused("What this device serves is kept for a while longer.")
            self._grip.note_drop()
        await self.leave()

    # ------------------------------------------------------------------ the worker's answers

    def on_answer(self, answer: Message) -> None:
        """Act on what the worker says about its shard; sessions are the server's business."""
        shard_state = self.shard_state
        match answer:
            case Progress(group=group) if shard_state and group == shard_state.group:
                self._go_on(answer.fraction)
            case Need(group=group) if shard_state and group == shard_state.group:
                self.weight_fetch.serve(answer)
            case Loaded(group=group) if shard_state and group == shard_state.group:
                self._ready(shard_state, answer)
            case Following(group=group) if shard_state and group == shard_state.group:
                shard_state.sessions = answer.sessions
            case Broken(group=group) if shard_state and group in ("", shard_state.group):
                self._break(answer.reason)

    def _go_on(self, fraction: float) -> None:
        if self.shard_state and not self.shard_state.ready:
            self.shard_state.fraction = fraction
            self.shard_state.since = time.monotonic()

    def _ready(self, shard_state: ShardState, loaded: Loaded) -> None:
        if self.presence is not Presence.ON:
            return
        shard_state.ready, shard_state.fraction = True, 1.0
        shard_state.since = time.monotonic()
        self.loaded = loaded
        self._failures = self._alike = self._failed_loads = 0
        self._serve(shard_state)

    def _serve(self, shard_state: ShardState) -> None:
        """Take sessions, if this device leads its stage."""
        loaded, stage = self.loaded, shard_state.assignment.stage
        if loaded is None or not shard_state.assignment.leads:
            return
        led = LedStage(
            worker=self.worker,
            start=stage.start,
            end=stage.end,
            members=tuple(Member(s.peer, s.index, s.kv, s.mlp) for s in stage.shards),
            dtype=stage.dtype,
            step_seconds=loaded.step_seconds,
            free_tokens=loaded.free_tokens,
        )
        self._context.server.serve(self.index, led)

    def _load(self, group: str, ranks: Sequence[Rank]) -> None:
        if self.shard_state is None or self.shard_state.group != group:
            return  # its owner has paused the device while the group was gathered
        stage, rank = self.shard_state.assignment.stage, self.shard_state.assignment.rank
        spec = {
            "folder": self._context.folder,
            "start": stage.start,
            "end": stage.end,
            "rank": rank,
            "dtype": stage.dtype,
            "quant": self._context.quant,
            "kv_bounds": _bounds([shard.kv for shard in stage.shards]),
            "mlp_bounds": _bounds([shard.mlp for shard in stage.shards]),
            "shares_ends": stage.shares_ends,
        }
        wire = [each.to_wire() for each in ranks]
        self.worker.order(Load(self.shard_state.group, spec, self.memory_bytes, wire))

    def _break(self, cause: str) -> None:
        """Give up a shard that broke here; its cause is told once, however often it comes back."""
        alike = self._alike + 1 if cause == self._cause else 1
        level = logging.WARNING if alike == 1 else logging.INFO
        logger.log(level, "shard of device %d is lost: %s", self.index, cause)
        self._lose(cause, alike)

    def _lose(self, cause: str, alike: int = 1) -> None:
        """Give up the shard; a group that does not form is tried again as if for a new cause."""
        self._failures += 1
        if self.shard_state and not self.shard_state.ready:
            self._failed = self.shard_state.assignment
            self._failed_loads += 1
        self._was_steady = self.shard_state is not None and self.shard_state.is_steady
        self._cause, self._alike, self._blamed = cause, alike, ""
        self._context.server.retire(self.index, FailCode.STAGE_LOST)
        self._forget()

    def _forget(self) -> None:
        self.weight_fetch.stop()
        self.shard_state = self.loaded = None
        self._since = time.monotonic()

    @property
    def follows_sessions(self) -> bool:
        """Whether a session is open in the group of which this device is a rank, but not the first.

        Of a stage that it leads the stage server knows.
        """
        return self.shard_state is not None and self.shard_state.sessions > 0

    @property
    def failure(self) -> str:
        """Why its last shard was lost; empty if it was given up for another plan."""
        return self._cause if self._failures else ""

    @property
    def trouble(self) -> Trouble | None:
        """The part that it fails to take up, or whose load has come to a halt, and why."""
        state = self.shard_state
        if state and not state.ready and self._has_stalled(state):
            return self._trouble_with(state.assignment, 0, STALLED_WORDS)
        if self._failed is None or not self._failed_loads:
            return None
        told = self._trouble_with(self._failed, self._failed_loads, self._cause)
        return replace(told, blamed=self._blamed)

    def _has_stalled(self, state: ShardState) -> bool:
        is_late = time.monotonic() - state.since > STALLED_SECONDS
        return is_late and self.worker.is_stalled

    def _trouble_with(self, part: Assignment, failures: int, cause: str) -> Trouble:
        """For all to read: of the paths of this machine only the last names are told."""
        words = FOLDERS.sub("", cause)[:TROUBLE_CAP]
        return Trouble(self.index, part.stage.start, part.stage.end, failures, words)

    @property
    def fetched(self) -> str:
        """What the shard that is ready had to be sent for, in words; empty if nothing."""
        count = self.weight_fetch.fetched_bytes
        store = self._context.store
        return f", {bytes_text(count)} fetched from {store.source.name}" if count and store else ""

    @property
    def words(self) -> str:
        """What it does now, as its owner reads it."""
        if self.presence is not Presence.ON:
            return "paused"
        state = self.shard_state
        if state is None:
            return "nothing"
        stage = state.assignment.stage
        doing = "serves" if state.ready else f"loads ({state.fraction:.0%})"
        return f"{doing} layers {stage.start}-{stage.end - 1}"

    @property
    def shard(self) -> Shard | None:
        """What we hold in the plan's words, once it is ready."""
        if self.shard_state is None or not self.shard_state.ready:
            return None
        return self.shard_state.assignment.stage.shards[self.shard_state.assignment.rank]


def _has(state: ShardState, peer: str, rank: int) -> bool:
    """Whether a peer has a rank in a group, which is not the leader's."""
    shards = state.assignment.stage.shards
    return 0 < rank < len(shards) and shards[rank].peer == peer


def _bounds(shares: Sequence[int]) -> list[int]:
    return [0, *accumulate(shares)]
