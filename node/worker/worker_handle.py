"""The node's side of one worker: spawn it, give it orders, let others hear its answers, end it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from node.worker.heartbeat import Heartbeat, cpu_seconds_of
from node.worker.messages import (
    CODEC,
    Broken,
    Describe,
    Described,
    Measure,
    Measured,
    Prepare,
    Prepared,
)
from node.worker.spawned_worker import WORKER, SpawnedWorker, WorkerPlace
from node.worker.standby_handle import StandbyWorker
from swarm.errors import BadModel, Deadline, EngineError, RemoteProtocolError
from swarm.model_spec import ModelSpec
from swarm.p2p.frame_protocol import FrameProtocol
from swarm.p2p.write_coalescing import WriteCoalescer
from swarm.task_set import TaskSet
from swarm.wire.messages import Message

DESCRIBE_SECONDS = 120.0  # a cold import of torch on a busy machine included
MEASURE_SECONDS = 60.0
PREPARE_SECONDS = 30.0
BACKLOG_BYTES = 1 << 28  # of orders that the worker has not read; above it no new rows are taken
END_SECONDS = 2.0

OnAnswer = Callable[[Message], None]
Question = tuple[type[Message], str]  # kind of the answer, and its group if it has one
logger = logging.getLogger(__name__)


class WorkerProcess:
    """A spawned worker; whoever listens hears its answers, and its end as `Broken`.

    One that hangs is killed.
    """

    _heartbeat: Heartbeat | None = None  # of the process that runs

    def __init__(self, place: WorkerPlace, standby: StandbyWorker | None = None) -> None:
        self._place = place
        self._standby = standby
        self._listeners: list[OnAnswer] = []
        self._tasks = TaskSet()
        self._waiting: dict[Question, asyncio.Future[Message]] = {}
        self._closing = False
        self._has_spoken = False  # before, it still loads torch and does not see us leave
        self._hung = ""  # why we killed it, if we did
        self.ended = asyncio.Event()

    @classmethod
    async def spawn(
        cls, place: WorkerPlace, standby: StandbyWorker | None = None
    ) -> "WorkerProcess":
        """Start a worker, which `standby` may replace later; holds a process until closed."""
        worker = cls(place, standby)
        await worker._start(await SpawnedWorker.spawn(WORKER, *place.arguments))
        return worker

    async def restart(self) -> None:
        """Start the process again after it has ended, or let the standby worker take its place."""
        await self.close()
        self._closing = False
        spawned = await self._standby.take(self._place) if self._standby else None
        await self._start(spawned or await SpawnedWorker.spawn(WORKER, *self._place.arguments))
        self.ended.clear()  # not before: whoever fails to start again has still ended

    def listen(self, on_answer: OnAnswer) -> None:
        """Let `on_answer` hear what nobody waits for, from now on; after those before it."""
        self._listeners.append(on_answer)

    def order(self, message: Message) -> None:
        """Send an order; a worker that has ended ignores it."""
        if not self.ended.is_set():
            self._coalescer.write(CODEC.encode(message))

    @property
    def is_behind(self) -> bool:
        """Whether so many orders wait to be read that the worker should not get more rows."""
        if self.ended.is_set():
            return False
        return self._coalescer.waiting_bytes > BACKLOG_BYTES

    @property
    def is_silent(self) -> bool:
        """Whether it has given no sign for seconds, so that nobody should be sent to it."""
        return self._heartbeat is not None and self._heartbeat.is_silent

    @property
    def is_stalled(self) -> bool:
        """Whether it computes nothing although it should."""
        return self._heartbeat is not None and self._heartbeat.is_stalled

    async def describe(self, folder: Path, name: str) -> ModelSpec:
        """Return the dimensions of a complete model; raises BadModel, Deadline, EngineError.

        The worker has loaded what reads them; this process never does.
        """
        answer = await self._ask(Describe(str(folder), name), Described, DESCRIBE_SECONDS)
        assert isinstance(answer, Described)
        if answer.cause:
            raise BadModel(answer.cause, answer.next_step)
        return ModelSpec(**answer.model)

    async def measure(self, order: Measure) -> Measured:
        """Return the measured speed of the device; raises Deadline or EngineError."""
        answer = await self._ask(order, Measured, MEASURE_SECONDS)
        assert isinstance(answer, Measured)
        return answer

    async def prepare(self, group: str, host: str) -> Prepared:
        """Let the worker listen for its group; raises Deadline or EngineError."""
        answer = await self._ask(Prepare(group, host), Prepared, PREPARE_SECONDS)
        assert isinstance(answer, Prepared)
        return answer

    async def close(self, end_seconds: float = END_SECONDS) -> None:
        """End the process: it exits when its socket closes, and is killed if it does not."""
        self._closing = True
        self._coalescer.flush()
        self._transport.close()
        if not self._has_spoken:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        try:
            async with asyncio.timeout(end_seconds):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._protocol.ended.cancel()
        if not self.ended.is_set():
            self._lose(EOFError("it was told to end"))
        self._stop_heartbeat()
        await self._tasks.close()

    async def _start(self, spawned: SpawnedWorker) -> None:
        self._has_spoken = False
        self._hung = ""
        self._process = spawned.process
        cpu_seconds = partial(cpu_seconds_of, spawned.process.pid)
        self._heartbeat = Heartbeat(spawned.beats, self._kill, self._tasks, cpu_seconds=cpu_seconds)
        await self._attach(spawned.orders)

    def _kill(self, reason: str) -> None:
        """End a worker that hangs: its socket then says so to everybody."""
        logger.error("the worker hangs: %s; it is killed", reason)
        self._hung = reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat:
            self._heartbeat.close()
            self._heartbeat = None

    async def _attach(self, ours: socket.socket) -> None:
        """Talk to the worker over this socket."""
        make = asyncio.get_running_loop().create_unix_connection
        self._transport, self._protocol = await make(
            lambda: FrameProtocol(self._dispatch), sock=ours
        )
        self._coalescer = WriteCoalescer(self._transport)
        self._protocol.ended.add_done_callback(self._reap)

    async def _ask(self, order: Message, kind: type[Message], seconds: float) -> Message:
        if self.ended.is_set():
            raise EngineError("The worker process has ended.")
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        question = kind, getattr(order, "group", "")
        self._waiting[question] = future
        self.order(order)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError as error:
            raise Deadline(f"The worker did not answer within {seconds:.0f} s.") from error
        finally:
            self._waiting.pop(question, None)

    def _reap(self, ended: "asyncio.Future[None]") -> None:
        """Nobody hears the worker any more: without this it would be deaf, not ended."""
        if ended.cancelled() or (error := ended.exception()) is None:
            return
        if not isinstance(error, EOFError | ConnectionError | RemoteProtocolError):
            logger.error("the connection to the worker failed", exc_info=error)
        self._lose(error)

    def _lose(self, error: BaseException) -> None:
        self.ended.set()
        self._stop_heartbeat()
        how = f"hung and was killed: {self._hung}" if self._hung else f"ended: {error}"
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineError(f"The worker process {how}."))
        if not self._closing:
            self._hand_on(Broken("", f"the worker process {how}"))

    def _dispatch(self, header: memoryview, body: memoryview) -> None:
        answer = CODEC.decode(header, body)
        self._has_spoken = True
        group = getattr(answer, "group", "")
        if isinstance(answer, Broken):
            self._disappoint(answer)
        future = self._waiting.get((type(answer), group))
        if future and not future.done():
            future.set_result(answer)
        else:
            self._hand_on(answer)

    def _disappoint(self, broken: Broken) -> None:
        """Whoever waits for an answer about a group that is lost gets none."""
        for (_, group), future in self._waiting.items():
            if broken.group in ("", group) and not future.done():
                future.set_exception(EngineError(f"The worker gave up: {broken.reason}"))

    def _hand_on(self, answer: Message) -> None:
        for on_answer in self._listeners:
            try:
                on_answer(answer)
            except Exception:  # an island: the others hear it, and the next ones concern others
                logger.exception("a %s of the worker was not understood", type(answer).__name__)
