"""Real shards of swarm-tiny in this process, their groups in threads over real sockets."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from socket import socket
from threading import Lock

from node.engine.shard_io import StageSpec
from node.engine.stage_runner import StageRunner
from node.worker.group_sockets import GroupLink, GroupListener
from node.worker.local_group import join_group
from node.worker.messages import Compute, Computed, Rank, Release, Reserve, Reserved
from node.worker.shard import LoadedShard, Place
from swarm.checkpoint.folder import find_model, load_config
from swarm.errors import EngineError, PeerError
from swarm.model_spec import BUILT_IN
from swarm.wire.messages import Message
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_ids import ids_to_bytes

FOLDER = find_model(BUILT_IN)
HIDDEN = int(load_config(FOLDER).hidden_size)
BUDGET = 1 << 25  # bytes: the whole of swarm-tiny and KV for thousands of tokens


def bounds_of(shares: Sequence[int]) -> tuple[int, ...]:
    return (0, *accumulate(shares))


def spec_of(
    start: int, end: int, shares: Sequence[int] = (8,), rank: int = 0, dtype: str = "f32"
) -> StageSpec:
    """Layers of swarm-tiny, KV heads and MLP blocks (8 of each) in equal shares."""
    return StageSpec(FOLDER, start, end, rank, bounds_of(shares), bounds_of(shares), dtype)


def _vocab_bounds(parts: Sequence[int]) -> tuple[int, ...]:
    vocab = int(load_config(FOLDER).vocab_size)
    return tuple(vocab * low // sum(parts) for low in bounds_of(parts)) if parts else ()


def lone_shard(
    start: int, end: int, budget: int = BUDGET, slowdown: float = 1.0, dtype: str = "f32"
) -> LoadedShard:
    """A stage of one device."""
    runner = StageRunner.load(spec_of(start, end, dtype=dtype), budget_bytes=budget)
    return LoadedShard(runner, Place(0, 1, HIDDEN), None, slowdown)


@dataclass
class ShardGroup:
    """A stage whose ranks follow their leader in threads; `close` ends them all."""

    leader: LoadedShard
    followers: list[LoadedShard]
    runners: list[StageRunner]
    ends: list[Future[None]]
    pool: ThreadPoolExecutor
    links: list[GroupLink]
    sockets: list[socket]
    noted: list[int]  # how many sessions are open, as the followers said it

    def close(self) -> None:
        """Cut the group; every follower ends."""
        self.leader.close()
        for end in self.ends:
            with suppress(PeerError, EngineError):
                end.result(10)
        self.pool.shutdown()
        for each in self.sockets:
            each.close()


def shard_group(
    start: int,
    end: int,
    shares: Sequence[int],
    budgets: Sequence[int] = (),
    vocab_parts: Sequence[int] = (),
    dtype: str = "f32",
) -> ShardGroup:
    """Load a stage over as many ranks as there are shares; the ends whole, or in such parts."""
    pool = ThreadPoolExecutor(len(shares))
    listeners = [GroupListener("127.0.0.1") for _ in shares]
    opened: list[socket] = []
    ranks = [Rank(("127.0.0.1",), each.port, each.certificate) for each in listeners]

    building = Lock()  # models get torch's default dtype, which all threads share

    def load(rank: int) -> tuple[LoadedShard, StageRunner, GroupLink]:
        sockets = listeners[rank].connect(ranks, rank)
        link, reducer = join_group(sockets, rank)
        opened.extend((*sockets.values(), *link._sockets.values()))
        spec = spec_of(start, end, shares, rank, dtype)
        with building:
            runner = StageRunner.load(
                replace(spec, vocab_bounds=_vocab_bounds(vocab_parts)),
                budget_bytes=budgets[rank] if budgets else BUDGET,
                reducer=reducer,
            )
        place = Place(rank, len(shares), HIDDEN)
        return LoadedShard(runner, place, link, 1.0), runner, link

    loaded = [each.result(60) for each in [pool.submit(load, r) for r in range(len(shares))]]
    for listener in listeners:
        listener.close()
    (leader, *followers), runners, links = map(list, zip(*loaded, strict=True))
    noted: list[int] = []
    ends = [pool.submit(follower.follow, noted.append) for follower in followers]
    return ShardGroup(leader, followers, runners, ends, pool, links, opened, noted)


def reserve(
    session: str, ids: Sequence[int], capacity: int = 64, sampling: Sampling | None = None
) -> Reserve:
    options = sampling.to_map() if sampling else {}
    return Reserve(session, capacity, 0, options, body=ids_to_bytes(list(ids)))


def rows_of(session: str, position: int, ids: Sequence[int]) -> Compute:
    """Ids for the first stage, to be sampled by the last one."""
    return Compute(session, position, len(ids), True, "i32", body=ids_to_bytes(list(ids)))


def passed_on(answer: Computed) -> Compute:
    """The rows of one stage as the next one gets them."""
    where = (answer.session, answer.position, answer.tokens, answer.sample)
    return Compute(*where, answer.dtype, body=answer.body)


def generate(
    stages: Sequence[LoadedShard], prompt: Sequence[int], sampling: Sampling, session: str = "s"
) -> list[int]:
    """The ids that a chain of stages generates after a prompt."""
    ids = list(prompt)
    for stage in stages:
        opened = stage.apply([reserve(session, prompt, 256, sampling)])
        assert [type(each) for each in opened] == [Reserved]
    position, fresh = 0, ids
    while len(ids) - len(prompt) < sampling.max_tokens:
        answer = computed(stages[0].apply([rows_of(session, position, fresh)]))
        for stage in stages[1:]:
            answer = computed(stage.apply([passed_on(answer)]))
        position, fresh = len(ids), answer.ids
        ids = [*ids, *fresh]
        if answer.finish:
            break
    for stage in stages:
        stage.apply([Release(session)])
    return ids[len(prompt) :]


def computed(answers: Sequence[Message]) -> Computed:
    """The only answer, which must be a Computed."""
    (answer,) = answers
    assert isinstance(answer, Computed), answer
    return answer
