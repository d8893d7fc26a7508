"""One loaded shard in its tensor-parallel group: the leader says the step, every rank runs it."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from node.engine.kv_cache.prefix_cache import Prompt
from node.engine.shard_io import StepItem, StepResult
from node.engine.stage_runner import StageRunner
from node.worker.group_sockets import GroupLink
from node.worker.messages import CODEC, Compute, Computed, Failed, Release, Reserve, Reserved
from swarm.errors import BadInput, EngineError, NoRoom, RemoteProtocolError, SwarmError
from swarm.wire.codec import Decoder
from swarm.wire.messages import TEXT_CAP, Message
from swarm.wire.rules import FailCode
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import rows_of_bytes, rows_to_bytes
from swarm.wire.token_ids import ids_array

logger = logging.getLogger(__name__)

SELF_TEST = "self-test"
SELF_TEST_STEPS = 4
SELF_TEST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank of how many, and how wide a hidden row is."""

    rank: int
    ranks: int
    hidden: int


class LoadedShard:
    """A StageRunner, the way to the other ranks of its stage, and the sessions it holds."""

    def __init__(
        self, runner: StageRunner, place: Place, link: GroupLink | None, slowdown: float
    ) -> None:
        self._runner = runner
        self._link = link
        self._rank = place.rank
        self._hidden = place.hidden
        self._slowdown = slowdown
        self._open: set[str] = set()  # sessions
        self._agree_on_tokens(place.ranks)

    @property
    def leads(self) -> bool:
        """Whether this rank is told the steps by its node."""
        return self._rank == 0

    @property
    def free_tokens(self) -> int:
        """KV tokens that every rank of the group can still take."""
        return self._runner.free_tokens

    def apply(self, orders: Sequence[Message]) -> list[Message]:
        """Run `orders` on every rank and return the answers; raises EngineError, PeerError.

        The leader opens sessions first: the other ranks never hear of one that it refuses.
        """
        answers = self._open_and_close(orders)
        refused = {each.session for each in answers if each.code}
        shared = [o for o in orders if not (isinstance(o, Reserve) and o.session in refused)]
        if self._link and shared:
            frames = (bytes(part) for order in shared for part in CODEC.encode(order))
            self._link.broadcast(b"".join(frames))
        return [*answers, *self._step(orders)]

    def follow(self, note_sessions: Callable[[int], None]) -> None:
        """Run what the leader says until its connection ends (PeerLost) or a step breaks.

        `note_sessions` hears how many sessions are open whenever that changes, before they run.
        """
        assert self._link is not None
        while True:
            orders = list(Decoder(CODEC).feed(self._link.receive(0, idle=True)))
            before = len(self._open)
            answers = self._open_and_close(orders)
            if len(self._open) != before:
                note_sessions(len(self._open))
            if any(each.code for each in answers):
                raise EngineError("This rank refuses a session that its leader has opened.")
            self._step(orders)

    def self_test(self) -> float:
        """Run a short session through the whole group; returns seconds of one decode step."""
        tokens = min(SELF_TEST_TOKENS, self._runner.context)
        self.apply([Reserve(SELF_TEST, tokens, 0, {}, body=bytes(4))])
        seconds = []
        for position in range(SELF_TEST_STEPS):
            start = time.perf_counter()
            answers = self.apply([self._test_step(position)])
            seconds.append(time.perf_counter() - start)
            if not answers or isinstance(answers[0], Failed):
                raise EngineError(f"The shard fails its self-test: {answers}.")
        self.apply([Release(SELF_TEST)])
        return sorted(seconds)[SELF_TEST_STEPS // 2]

    def _test_step(self, position: int) -> Compute:
        if self._runner.is_first:
            return Compute(SELF_TEST, position, 1, True, "i32", body=bytes(4))
        dtype, body = rows_to_bytes(torch.full((1, self._hidden), 0.01))  # [1, hidden]
        return Compute(SELF_TEST, position, 1, True, dtype, body=body)

    def close(self) -> None:
        """Cut the connections to the other ranks."""
        if self._link:
            self._link.close()

    def _agree_on_tokens(self, ranks: int) -> None:
        """Shrink every rank's KV store to the smallest one, so that all take and refuse alike.

        Waits for the other ranks as long as they load; a rank that ends raises PeerLost.
        """
        if self._link is None:
            return
        tokens = self._runner.free_tokens
        if self._rank:
            self._link.send(0, tokens.to_bytes(8, "big"))
            tokens = int.from_bytes(self._link.receive(0, idle=True), "big")
        else:
            others = [self._link.receive(rank, idle=True) for rank in range(1, ranks)]
            tokens = min(tokens, *(int.from_bytes(each, "big") for each in others))
            self._link.broadcast(tokens.to_bytes(8, "big"))
        self._runner.shrink(tokens)

    def _open_and_close(self, orders: Sequence[Message]) -> list[Reserved]:
        answers = []
        for order in orders:
            if isinstance(order, Reserve):
                answers.append(self._reserve(order))
            elif isinstance(order, Release):
                self._runner.close(order.session)
                self._open.discard(order.session)
        return answers

    def _reserve(self, order: Reserve) -> Reserved:
        try:
            ids = ids_array(order.body)
            self._runner.open(
                order.session,
                capacity=order.capacity,
                history=ids,
                generated=order.generated,
                returning=order.returning,
                sampling=Sampling.from_map(order.sampling) if order.sampling else None,
            )
        except NoRoom as error:
            return Reserved(order.session, self.free_tokens, FailCode.NO_ROOM, _short(error))
        except (BadInput, EngineError, RemoteProtocolError) as error:
            return Reserved(order.session, self.free_tokens, FailCode.BAD_FRAME, _short(error))
        self._open.add(order.session)
        held = self._runner.share(order.session, Prompt.of(order.owner, ids))
        return Reserved(order.session, self.free_tokens, held=held)

    def _step(self, orders: Sequence[Message]) -> list[Message]:
        items, failed = [], []
        steps = [order for order in orders if isinstance(order, Compute)]
        for order in steps:
            try:
                items.append(self._item(order))
            except RemoteProtocolError as error:
                failed.append(Failed(order.session, FailCode.BAD_FRAME, _short(error)))
        start = time.perf_counter()
        results = self._slowly(items) if items else []
        spent = int((time.perf_counter() - start) * 1e6)
        by_session = {order.session: order for order in steps}
        return [*failed, *(self._answer(by_session[r.session], r, spent) for r in results)]

    def _slowly(self, items: list[StepItem]) -> list[StepResult]:
        start = time.thread_time()  # waiting for the other ranks is not work of ours
        results = self._runner.step(items)
        if self._slowdown > 1:
            time.sleep((time.thread_time() - start) * (self._slowdown - 1))
        return results

    def _item(self, order: Compute) -> StepItem:
        if self._runner.is_first:
            ids = ids_array(order.body)
            if len(ids) != order.tokens or not len(ids):
                raise RemoteProtocolError(f"{len(ids)} ids came where {order.tokens} were said.")
            rows = torch.from_numpy(ids.astype(np.int64))  # [tokens]
        else:
            rows = rows_of_bytes(order.dtype, order.body, order.tokens)  # [tokens, hidden]
        return StepItem(order.session, order.position, rows, order.sample, tuple(order.drafts))

    def _answer(self, order: Compute, result: StepResult, spent: int) -> Message:
        if result.error:
            code = FailCode.NO_ROOM if isinstance(result.error, NoRoom) else FailCode.BAD_FRAME
            return Failed(order.session, code, _short(result.error))
        dtype, body = "", memoryview(result.logprobs)
        if result.rows is not None:
            dtype, body = rows_to_bytes(result.rows, narrow=order.narrow and self.leads)
        return Computed(
            order.session,
            order.position,
            order.tokens,
            order.sample,
            dtype=dtype,
            ids=list(result.ids),
            finish=result.finish,
            drafts=list(result.drafts),
            compute_us=spent,
            free_tokens=self.free_tokens,
            body=body,
        )


def _short(error: SwarmError) -> str:
    """An error as it fits into a frame: a stranger's words in it may be long."""
    return str(error)[:TEXT_CAP]
