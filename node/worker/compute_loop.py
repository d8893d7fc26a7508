"""The worker process of one device: reads orders from its node, computes, answers."""

import gc
import importlib
import logging
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from node.engine.lean_transformers import import_lean
from node.engine.parallel.allreduce import Reducer
from node.engine.shard_io import StageSpec
from node.worker.answers import described, frame_of, measured, refusals, with_queue
from node.worker.batching import ChunkSize, DecodeBatcher
from node.worker.grammar_waits import GrammarWaits
from node.worker.group_sockets import GroupLink, GroupListener
from node.worker.heartbeat import answer_beats, end_with_parent
from node.worker.local_group import join_group
from node.worker.messages import (
    CODEC,
    Broken,
    Compute,
    Describe,
    Following,
    Given,
    Load,
    Loaded,
    Measure,
    Prepare,
    Prepared,
    Progress,
    Rank,
    Release,
    Reserve,
    Unload,
)
from node.worker.scheduler import DECODE_TOKENS, Arrived, Schedule
from node.worker.weight_requests import WeightRequests
from swarm.checkpoint.folder import load_config
from swarm.errors import EngineError
from swarm.formatting import log_printably
from swarm.wire.codec import Decoder
from swarm.wire.messages import TEXT_CAP, Message

if TYPE_CHECKING:  # loaded when the node plans, see `_get_ready`
    from node.engine.model_loader.layer_reuse import ReusableLayers
    from node.engine.stage_runner import StageRunner
    from node.worker.shard import LoadedShard

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 20
INBOX_READS = 64  # not handled yet: above it the node's socket fills up, and the node notices
MOST_WAITING = 4096  # orders
LOADING_NEEDS = ("node.worker.shard", "torch.fx.experimental.symbolic_shapes")  # models on "meta"


class Worker:
    """One device: at most one shard, one compute thread (the main one), one reading thread."""

    def __init__(
        self, node: socket.socket, *, device: str, slowdown: float, most_sessions: int = 0
    ) -> None:
        self._node = node
        self._device = device
        self._slowdown = slowdown
        self._schedule = Schedule(most_sessions=most_sessions)
        self._inbox: queue.Queue[list[Arrived]] = queue.Queue(INBOX_READS)
        self._listener: GroupListener | None = None
        self._link: GroupLink | None = None
        self._shard: LoadedShard | None = None
        self._runner: StageRunner | None = None
        self._kept: ReusableLayers | None = None
        self._group = ""
        self._most_sessions = most_sessions
        self._batcher = DecodeBatcher(1.0)
        self._chunk_size = ChunkSize()
        self._grammars = GrammarWaits(lambda arrived: self._inbox.put([arrived]))
        self._weight_requests = WeightRequests(self._answer, self._heed)
        self._told = self._heard = 0  # orders about the shard: read off the socket, begun
        self._is_ready = False  # what loads models is imported
        self._step_since = 0.0  # when the step that runs began; 0 between steps

    def run(self) -> None:
        """Serve until the node closes the socket, which ends the process."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            for each in self._take():
                self._handle(each)
            self._await_others()
            self._await_batch()
            self._step(self._now())

    @property
    def step_seconds(self) -> float:
        """How long the step that runs has taken; 0 between steps."""
        since = self._step_since
        return time.perf_counter() - since if since else 0.0

    # ------------------------------------------------------------------ orders in, answers out

    def _read(self) -> None:
        decoder = Decoder(CODEC)
        while data := self._received():
            orders = []
            for order in decoder.feed(data):
                if isinstance(order, Load | Unload | Prepare):
                    self._grammars.clear()
                    self._told += 1  # before the look at the link: `_heed` looks after setting it
                    if self._link:
                        self._link.close()  # wakes a rank that follows its leader
                if isinstance(order, Given):
                    self._weight_requests.given(order)
                    continue
                arrived = Arrived(order, time.perf_counter())
                if not self._grammars.holds(arrived):
                    orders.append(arrived)
            if orders:
                self._inbox.put(orders)  # what came together is computed together
        os._exit(0)  # the node is gone: nothing here is worth keeping

    def _received(self) -> bytes:
        try:
            return self._node.recv(READ_BYTES)
        except OSError:
            return b""

    def _take(self) -> list[Arrived]:
        """What has come, as far as there is room to hold it; waits if there is nothing to do."""
        taken = [] if self._schedule else self._inbox.get()
        while len(taken) + len(self._schedule) < MOST_WAITING and not self._inbox.empty():
            taken += self._inbox.get_nowait()
        return taken

    def _await_others(self) -> None:
        """Hold back rows of clients far over their part, while those of others may come."""
        while seconds := self._schedule.held_seconds(self._now()):
            try:
                arrived = self._inbox.get(timeout=seconds)
            except queue.Empty:
                return
            for each in arrived:
                self._handle(each)

    def _now(self) -> float:
        """The time; the end of all time if what waits leaves no room for others to come."""
        is_full = len(self._schedule) >= MOST_WAITING
        return math.inf if is_full else time.perf_counter()

    def _await_batch(self) -> None:
        """Let decodes wait a moment for those of other sessions."""
        ends_at = time.perf_counter() + self._batcher.window_seconds
        while 0 < self._schedule.decodes < self._batcher.target_size:
            try:
                arrived = self._inbox.get(timeout=max(0.0, ends_at - time.perf_counter()))
            except queue.Empty:
                return
            for each in arrived:
                self._handle(each)

    def _answer(self, *messages: Message) -> None:
        """Tell the node; what belongs together goes in one piece, and wakes it once."""
        self._node.sendall(b"".join(part for each in messages for part in frame_of(each)))

    def _handle(self, arrived: Arrived) -> None:
        if isinstance(arrived.order, Reserve | Release | Compute):
            self._schedule.add(arrived)
            return
        while self._schedule:
            self._step()
        self._heard += isinstance(arrived.order, Load | Unload | Prepare)
        try:
            self._control(arrived.order)
        except Exception as error:  # an island: an order that cannot be followed ends no process
            group = getattr(arrived.order, "group", "")
            logger.exception("%s of group %s failed", type(arrived.order).__name__, group)
            self._break(group, error)

    def _control(self, order: Message) -> None:
        match order:
            case Describe():
                self._get_ready()
                self._answer(described(order))
            case Measure():
                self._answer(measured(order, self._device, self._slowdown))
                self._get_ready()
            case Prepare(group=group, host=host):
                self._give_up()
                self._listener = GroupListener(host)
                certificate = self._listener.certificate
                self._answer(Prepared(group, self._listener.port, certificate))
            case Load():
                self._load(order)
            case Unload(keep=True):
                self._give_up()
            case Unload():
                self._drop()

    def _get_ready(self) -> None:
        """Import what loads models, once; after measuring, to be there when the plan comes."""
        if self._is_ready:
            return
        self._is_ready = True
        import_models("cpu" if self._device == "cpu" else "cuda")
        keep_imports()

    # ------------------------------------------------------------------ one shard

    def _load(self, order: Load) -> None:
        try:
            self._shard = self._loaded(order)
            if self._shard.leads:
                self._answer(self._report(order.group, self._shard.self_test()))
                self._expect_grammars()
                return
            self._answer(self._report(order.group, 0.0))
            self._heed()
            self._shard.follow(partial(self._follows, order.group))
        except Exception as error:  # noqa: BLE001 - an island: it all comes from others
            logger.info("shard of group %s is lost: %s", order.group, error)  # the node says it
            if self._told != self._heard:
                self._give_up()
            self._break(order.group, error)

    def _loaded(self, order: Load) -> "LoadedShard":
        self._get_ready()
        from node.engine.model_loader.load_shard import WeightSources
        from node.engine.stage_runner import StageRunner
        from node.worker.shard import LoadedShard, Place

        if self._listener is None or len(order.ranks) < 2:
            self._give_up()
        self._group = order.group
        spec = _spec_of(order)
        link, reducer = self._join(order, spec.rank)
        kept, self._kept = self._kept, None
        runner = StageRunner.load(
            spec,
            budget_bytes=order.budget_bytes,
            device=self._device,
            reducer=reducer,
            on_progress=lambda share: self._progress(order.group, share),
            sources=WeightSources(
                lambda wanted: self._weight_requests.ask(order.group, wanted), kept
            ),
        )
        self._runner = runner
        config = load_config(spec.folder)
        share = (spec.end - spec.start) / int(config.num_hidden_layers)
        self._batcher = DecodeBatcher(share, self._most_sessions)
        self._schedule.serves(share)
        self._chunk_size = ChunkSize()
        place = Place(spec.rank, spec.ranks, int(config.hidden_size))
        return LoadedShard(runner, place, link, self._slowdown)

    def _expect_grammars(self) -> None:
        """Compile grammars if we sample, unless the node has meanwhile said something else."""
        assert self._runner is not None
        if self._runner.is_last and self._told == self._heard:
            self._grammars.serve(self._runner.grammars)

    def _progress(self, group: str, share: float) -> None:
        self._answer(Progress(group, share))
        self._heed()

    def _follows(self, group: str, sessions: int) -> None:
        """The node hears nothing else of what its rank computes: its leader's node has the rest."""
        self._answer(Following(group, sessions))

    def _heed(self) -> None:
        """Give up a shard if the node has meanwhile said something else; raises EngineError."""
        if self._told != self._heard:
            raise EngineError("The node has other plans with this device.")

    def _join(self, order: Load, rank: int) -> tuple[GroupLink | None, Reducer | None]:
        if len(order.ranks) < 2 or self._listener is None:
            return None, None
        ranks = [Rank.from_wire(each) for each in order.ranks]
        sockets = self._listener.connect(ranks, rank)
        self._link, reducer = join_group(sockets, rank, device=self._device)
        return self._link, reducer

    def _report(self, group: str, seconds: float) -> Loaded:
        assert self._shard is not None
        assert self._runner is not None
        runner = self._runner
        free = self._shard.free_tokens
        sizes = runner.weight_bytes, runner.bytes_read, free
        return Loaded(group, *sizes, seconds, runner.bytes_kept)

    def _break(self, group: str, error: Exception) -> None:
        """Say that a group is lost, and why; nothing of its shard is used any more."""
        kept = self._kept  # layers that were given up before are sound
        self._drop()
        self._kept = kept
        self._answer(Broken(group, (str(error) or repr(error))[:TEXT_CAP]))

    def _give_up(self) -> None:
        """Forget the shard, but keep its layers for the next one."""
        kept = self._runner.release_layers() if self._runner else self._kept
        self._drop()
        self._kept = kept

    def _drop(self) -> None:
        if self._link:
            self._link.close()
        if self._listener:
            self._listener.close()
        self._grammars.clear()
        self._shard = self._runner = self._link = self._listener = self._kept = None
        self._group = ""
        gc.collect()  # a model is full of cycles: the next shard needs its memory now

    def _step(self, now: float = math.inf) -> None:
        most_decodes = self._batcher.at_most(self._schedule.decoding)
        step = self._schedule.next_step(most_decodes, self._chunk_size.tokens, now)
        batch = [each.order for each in step]
        if self._shard is None or not self._shard.leads:
            self._answer(*refusals(batch))
        elif batch:
            came = {getattr(each.order, "session", ""): each.seconds for each in step}
            self._run(self._shard, batch, came)

    def _run(self, shard: "LoadedShard", batch: list[Message], came: dict[str, float]) -> None:
        """Run a batch; who opens a session hears so before the rows are computed."""
        rows: list[Message] = [order for order in batch if isinstance(order, Compute)]
        opening = [order for order in batch if not isinstance(order, Compute)]
        start = self._step_since = time.perf_counter()
        try:
            for part in (opening, rows):
                answers = shard.apply(part) if part else []
                self._answer(*(with_queue(answer, start, came) for answer in answers))
        except Exception as error:  # an island: one step costs its group, never the process
            logger.warning("a step of group %s broke", self._group, exc_info=error)
            self._break(self._group, error)
            self._answer(*refusals(batch))
            return
        finally:
            self._step_since = 0.0
        self._note(batch, time.perf_counter() - start)

    def _note(self, batch: Sequence[Message], seconds: float) -> None:
        for order in batch:
            if isinstance(order, Release):
                self._batcher.left(order.session)
        rows = [order for order in batch if isinstance(order, Compute)]
        if not rows:
            return
        self._schedule.ran(rows, seconds, time.perf_counter())
        if max(order.tokens for order in rows) > DECODE_TOKENS:
            self._chunk_size.ran(sum(order.tokens for order in rows), seconds)
        else:
            fair = [each.session for each in rows if not self._schedule.is_over(each.session)]
            self._batcher.ran(fair, seconds)


def _spec_of(order: Load) -> StageSpec:
    spec = dict(order.spec)
    spec["folder"] = folder = Path(spec["folder"])
    spec |= {name: tuple(spec[name]) for name in ("kv_bounds", "mlp_bounds")}
    if spec.pop("shares_ends", False):
        vocab, ranks = int(load_config(folder).vocab_size), len(spec["kv_bounds"]) - 1
        spec["vocab_bounds"] = tuple(vocab * rank // ranks for rank in range(ranks + 1))
    return StageSpec(**spec)


def import_models(kind: str) -> None:
    """Import what loads models on a kind of device."""
    if kind == "cpu":
        import_lean()
    for name in LOADING_NEEDS:
        importlib.import_module(name)
    from node.engine.random_stream import is_known

    is_known()  # this torch's random numbers: their kernel is loaded from the cache


def keep_imports() -> None:
    """Let what is imported stay: a dropped shard is found without looking through it."""
    gc.collect()
    gc.freeze()


def serve(node: socket.socket, pulse: socket.socket, place: Sequence[str]) -> None:
    """Be the worker of a place - device, threads, slowdown, sessions - until the node is gone."""
    device, threads, slowdown, sessions = place
    torch.set_num_threads(int(threads))
    worker = Worker(node, device=device, slowdown=float(slowdown), most_sessions=int(sessions))
    answer_beats(pulse, lambda: worker.step_seconds)
    worker.run()


def main() -> None:
    """Run the worker on two inherited sockets: those, device, threads, slowdown, sessions."""
    descriptor, pulse, *place = sys.argv[1:7]
    end_with_parent()
    log_printably()
    gc.freeze()  # what is imported stays, as above
    serve(socket.socket(fileno=int(descriptor)), socket.socket(fileno=int(pulse)), place)
