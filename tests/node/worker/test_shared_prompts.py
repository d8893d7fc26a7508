"""What prompts have in common is computed once, and no token changes: real shards, real groups."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from node.serving.session_table import StageSession, route_of, trouble_with
from node.worker.messages import Compute, Release, Reserve, Reserved
from node.worker.shard import LoadedShard
from swarm.testing.clock import settle
from swarm.wire.messages import Open, Opened, Step
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import rows_to_bytes
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, FIRST, Stand
from tests.node.worker.shards import (
    BUDGET,
    HIDDEN,
    computed,
    generate,
    lone_shard,
    passed_on,
    reserve,
    rows_of,
    shard_group,
)

SYSTEM = [10, 200, 33, 47, 5, 81, *range(100, 130)]
ONE, OTHER = [*SYSTEM, 90, 91], [*SYSTEM, 150, 151, 152]
SAMPLINGS = {
    "greedy": Sampling(max_tokens=8),
    "seeded": Sampling(max_tokens=8, temperature=0.9, top_k=40, seed=5, repetition_penalty=1.2),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def plain(sampling: Sampling, prompt: tuple[int, ...]) -> list[int]:
    return generate([lone_shard(0, 3), lone_shard(3, 8)], prompt, sampling)


def tell(
    chain: Sequence[LoadedShard], prompt: Sequence[int], sampling: Sampling, session: str
) -> tuple[int, list[int]]:
    """Generate as a client does: from the least that all stages hold on; returns that, and ids."""
    held = len(prompt) - 1
    for stage in chain:
        (opened,) = stage.apply([replace(reserve(session, prompt, 64, sampling), owner="me")])
        assert isinstance(opened, Reserved)
        held = min(held, opened.held)
    ids, fresh, position = list(prompt), list(prompt[held:]), held
    while True:
        answer = computed(chain[0].apply([rows_of(session, position, fresh)]))
        for stage in chain[1:]:
            answer = computed(stage.apply([passed_on(answer)]))
        position, fresh = len(ids), answer.ids
        ids += answer.ids
        if answer.finish:
            break
    for stage in chain:
        stage.apply([Release(session)])
    return held, ids[len(prompt) :]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_shared_beginning_changes_no_token(sampling: Sampling) -> None:
    chain = [lone_shard(0, 3), lone_shard(3, 8)]
    assert tell(chain, ONE, sampling, "a") == (0, plain(sampling, tuple(ONE)))
    assert tell(chain, OTHER, sampling, "b") == (len(SYSTEM), plain(sampling, tuple(OTHER)))
    assert tell(chain, ONE, sampling, "c") == (len(ONE) - 1, plain(sampling, tuple(ONE)))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_uneven_ranks_share_alike(sampling: Sampling) -> None:
    group = shard_group(0, 5, (5, 3))
    try:
        chain = [group.leader, lone_shard(5, 8)]
        assert tell(chain, ONE, sampling, "a") == (0, plain(sampling, tuple(ONE)))
        assert tell(chain, OTHER, sampling, "b") == (len(SYSTEM), plain(sampling, tuple(OTHER)))
    finally:
        group.close()


def test_a_stage_that_has_forgotten_makes_all_compute_again() -> None:
    sampling = SAMPLINGS["greedy"]
    first, last = lone_shard(0, 3), lone_shard(3, 8)
    tell([first, last], ONE, sampling, "a")
    fresh = lone_shard(3, 8)
    assert tell([first, fresh], OTHER, sampling, "b") == (0, plain(sampling, tuple(OTHER)))
    everything = last.free_tokens
    filled = [last.apply([reserve(f"f{n}", [1], 64)])[0] for n in range(everything // 64)]
    assert all(isinstance(each, Reserved) and not each.code for each in filled)
    dtype, row = rows_to_bytes(torch.zeros(1, HIDDEN))
    for number in range(len(filled)):  # every one of them takes a page
        last.apply([Compute(f"f{number}", 0, 1, False, dtype, body=row)])
    last.apply([Release(f"f{n}") for n in range(everything // 64)])
    assert last.free_tokens == everything
    assert tell([first, last], OTHER, sampling, "c") == (0, plain(sampling, tuple(OTHER)))


def test_ranks_that_are_nearly_full_keep_and_forget_alike() -> None:
    group = shard_group(0, 4, (4, 4), (BUDGET // 8, BUDGET // 8))
    try:
        chain = [group.leader, lone_shard(4, 8)]
        sampling = SAMPLINGS["greedy"]
        free = group.leader.free_tokens
        for number in range(free // 64 + 5):
            prompt = [number % 7 + 1, number, *SYSTEM]
            tell(chain, prompt, replace(sampling, max_tokens=1), f"s{number}")
            group.leader.apply([reserve(f"big{number}", [1], free + 1)])  # refused
        assert group.leader.free_tokens == free
        kept = [len(runner._store.manager.prefixes) for runner in group.runners]
        group.leader.self_test()
        assert kept[0] > 2
        assert tell(chain, ONE, sampling, "last")[1] == plain(sampling, tuple(ONE))
        assert [r.free_tokens for r in group.runners[:1]] == [free]
    finally:
        group.close()


# ---------------------------------------------------------------- between peers

ROUTE: list[list[object]] = [["a", 0, 3], ["b", 3, 5], ["c", 5, 8]]
OPEN = Open("s", 1, b"key", stage=1, route=ROUTE, model="m", capacity=20)
STEP = Step("s", 1, b"key", stage=1, position=0, tokens=4, sample=False, dtype="f32")


def session_of(message: Open, client: str = "client", held: int = 0) -> StageSession:
    session = StageSession(message, client, route_of(message), device=0, seen_seconds=0.0)
    session.held = held
    return session


@pytest.mark.parametrize(
    ("position", "code"), [(0, ""), (3, ""), (6, ""), (7, "bad_frame"), (17, "bad_frame")]
)
def test_the_first_step_starts_within_what_is_held(position: int, code: str) -> None:
    session = session_of(OPEN, held=6)
    step = replace(STEP, position=position)
    assert trouble_with(step, session, "a") == code
    if not code:
        session.accept(step, 0.0, 0.0)
        assert trouble_with(step, session, "a") == "seen"
        assert trouble_with(replace(step, position=position + 4), session, "a") == ""
        assert trouble_with(replace(step, position=position + 5), session, "a") == "bad_frame"


def test_only_one_clients_sessions_through_the_same_stages_share() -> None:
    other_way = replace(OPEN, route=[["x", 0, 3], *ROUTE[1:]])
    other_end = replace(OPEN, route=[*ROUTE[:2], ["x", 5, 8]])
    owner = session_of(OPEN).owner
    assert session_of(replace(OPEN, session="t", epoch=3)).owner == owner
    assert session_of(other_end).owner == owner
    assert session_of(other_way).owner != owner
    assert session_of(OPEN, "stranger").owner != owner


def test_a_client_is_told_what_is_held_and_may_start_there(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open())
        order = stand.worker.last(Reserve)
        assert order.owner
        await stand.answer(Reserved(order.session, 900, held=2))
        assert stand.client.last(Opened).held == 2
        await stand.send(stand.step(2, 1), sender=FIRST)
        await settle()
        assert len(stand.worker.orders) == 2
        assert stand.ears[CLIENT].heard == [stand.client.last(Opened)]

    at_stand(story)
