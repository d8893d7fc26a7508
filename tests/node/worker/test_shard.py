"""A loaded shard and its group: the tokens of transformers, the self-test, and equal room."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.worker.messages import Computed, Failed, Release, Reserved
from node.worker.shard import LoadedShard
from swarm.errors import PeerError
from swarm.wire.sampling_params import Sampling
from tests.node.worker.shards import (
    BUDGET,
    FOLDER,
    ShardGroup,
    computed,
    generate,
    lone_shard,
    reserve,
    rows_of,
    shard_group,
)

PROMPT = [10, 200, 33, 47, 5, 81]
CONTEXT = 2048  # of swarm-tiny
GREEDY = Sampling(max_tokens=12)
SAMPLED = Sampling(max_tokens=12, temperature=0.9, top_k=40, seed=5)


@cache
def whole_model() -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(FOLDER, dtype=torch.float32).eval()


def expected(prompt: list[int], sampling: Sampling) -> list[int]:
    """What transformers' own generate adds."""
    torch.manual_seed(sampling.seed or 0)
    chosen: dict[str, Any] = {"do_sample": False}
    if not sampling.is_greedy:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    whole = whole_model().generate(
        torch.tensor([prompt]), max_new_tokens=sampling.max_tokens, eos_token_id=None, **chosen
    )
    ids: list[int] = whole[0, len(prompt) :].tolist()
    return ids


@pytest.fixture
def group() -> Iterator[Callable[..., ShardGroup]]:
    """Load groups that are closed at the end of the test."""
    opened: list[ShardGroup] = []

    def load(*arguments: Any) -> ShardGroup:
        opened.append(shard_group(*arguments))
        return opened[-1]

    yield load
    for each in opened:
        each.close()


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_two_uneven_ranks_and_a_second_stage_generate_what_the_whole_model_does(
    group: Callable[..., ShardGroup], sampling: Sampling
) -> None:
    first = group(0, 5, (5, 3)).leader
    assert generate([first, lone_shard(5, 8)], PROMPT, sampling) == expected(PROMPT, sampling)


def test_three_uneven_ranks_sample_what_the_whole_model_does(
    group: Callable[..., ShardGroup],
) -> None:
    assert generate([group(0, 8, (4, 1, 3)).leader], PROMPT, SAMPLED) == expected(PROMPT, SAMPLED)


def test_stop_strings_are_left_to_the_client() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    ids = expected(PROMPT, GREEDY)
    word = tokenizer.decode(ids[3:5])
    assert generate([lone_shard(0, 8)], PROMPT, replace(GREEDY, stop=(word,))) == ids


def test_an_emulated_slow_device_computes_the_same_but_later() -> None:
    slow, quick = lone_shard(0, 8, BUDGET, 20.0), lone_shard(0, 8)
    assert slow.self_test() > 2 * quick.self_test()
    assert generate([slow], PROMPT, GREEDY) == expected(PROMPT, GREEDY)


# ---------------------------------------------------------------- the self-test


@pytest.mark.parametrize("layers", [(0, 8), (2, 5), (5, 8)])
def test_every_kind_of_stage_passes_its_self_test_and_keeps_no_session(
    layers: tuple[int, int],
) -> None:
    shard = lone_shard(*layers)
    before = shard.free_tokens
    assert shard.self_test() > 0
    assert shard.free_tokens == before


def test_the_self_test_of_a_group_runs_on_every_rank(group: Callable[..., ShardGroup]) -> None:
    made = group(2, 4, (5, 3))
    assert made.leader.self_test() > 0
    made.leader.close()
    with pytest.raises(PeerError):
        made.ends[0].result(5)


def test_ranks_that_follow_say_how_many_sessions_are_open(
    group: Callable[..., ShardGroup],
) -> None:
    shards = group(0, 8, (5, 3))
    shards.leader.apply([reserve("one", PROMPT), reserve("two", PROMPT)])
    shards.leader.apply([rows_of("one", 0, PROMPT)])
    shards.leader.apply([Release("one")])
    shards.leader.apply([Release("two"), Release("nobody")])
    shards.close()
    assert shards.noted == [2, 1, 0]


def test_a_lost_rank_shows_in_the_next_step(group: Callable[..., ShardGroup]) -> None:
    made = group(0, 2, (4, 4))
    made.links[1].close()
    with pytest.raises(PeerError):
        made.leader.self_test()


# ---------------------------------------------------------------- room


def test_reservations_are_counted_and_given_back() -> None:
    shard = lone_shard(0, 8)
    before = shard.free_tokens
    (answer,) = shard.apply([reserve("s", PROMPT, 65)])
    assert answer == Reserved("s", before - 128)
    shard.apply([Release("s"), Release("s"), Release("never there")])
    assert shard.free_tokens == before


def fill(shard: LoadedShard, leave: int = CONTEXT) -> list[str]:
    """Leave room for less than a whole context; returns the sessions that hold the rest."""
    fillers: list[str] = []
    while shard.free_tokens >= max(leave, CONTEXT):
        fillers.append(f"filler {len(fillers)}")
        shard.apply([reserve(fillers[-1], [1] * CONTEXT, CONTEXT)])
    return fillers


def test_a_session_beyond_the_context_is_refused_for_good_at_every_stage() -> None:
    for start, end in ((0, 4), (4, 8)):
        shard = lone_shard(start, end)
        (refused,) = shard.apply([reserve("s", PROMPT, CONTEXT + 1)])
        assert isinstance(refused, Reserved)
        assert refused.code == "bad_frame"
        assert str(CONTEXT) in refused.reason
        (opened,) = shard.apply([reserve("s", PROMPT, CONTEXT)])
        assert isinstance(opened, Reserved)
        assert not opened.code


def test_a_session_beyond_the_room_is_refused_and_the_others_go_on() -> None:
    shard = lone_shard(0, 8)
    shard.apply([reserve("s", PROMPT)])
    fill(shard)
    (refused,) = shard.apply([reserve("t", [1] * (shard.free_tokens + 1), shard.free_tokens + 1)])
    assert isinstance(refused, Reserved)
    assert refused.code == "no_room"
    assert computed(shard.apply([rows_of("s", 0, PROMPT)])).ids


def test_room_is_granted_before_the_ids_of_an_open_are_looked_at() -> None:
    shard = lone_shard(4, 8)
    fill(shard)
    free = shard.free_tokens
    nonsense = replace(reserve("t", [-1] * (free + 1), free + 1), generated=9999)
    (refused,) = shard.apply([nonsense])
    assert isinstance(refused, Reserved)
    assert refused.code == "no_room"
    shard.apply([Release("filler 0")])
    free = shard.free_tokens
    (refused,) = shard.apply([nonsense])
    assert isinstance(refused, Reserved)
    assert refused.code == "bad_frame"
    assert shard.free_tokens == free  # what was granted meanwhile is given back


@pytest.mark.parametrize("returning", [False, True])
def test_to_say_that_ids_were_generated_buys_no_room(returning: bool) -> None:
    shard = lone_shard(0, 8)
    room = shard.free_tokens
    shard.apply([reserve("honest", [1] * (CONTEXT - 600), CONTEXT)])  # may outgrow its promise
    fill(shard, leave=0)
    shard.apply([Release("filler 0")])
    let_in = {}
    for generated in (0, 1):
        opened = replace(reserve("n", [1, 2], 300), generated=generated, returning=returning)
        names = [f"n{number}" for number in range(room // 300)]
        answers = [shard.apply([replace(opened, session=name)])[0] for name in names]
        let_in[generated] = sum(isinstance(each, Reserved) and not each.code for each in answers)
        shard.apply([Release(name) for name in names])
    assert let_in[0] == let_in[1] > 0


def test_a_session_that_outgrows_the_room_is_refused_a_step_and_loses_nothing() -> None:
    shard = lone_shard(0, 4)
    shard._runner.shrink(7 * BLOCK_TOKENS)
    shard.apply([reserve("t", PROMPT, BLOCK_TOKENS), reserve("s", PROMPT, 7 * BLOCK_TOKENS)])
    long = [3 + n % 90 for n in range(6 * BLOCK_TOKENS)]
    assert computed(shard.apply([rows_of("s", 0, long)])).tokens == len(long)
    refused, other = shard.apply([rows_of("s", len(long), [5]), rows_of("t", 0, PROMPT)])
    assert isinstance(refused, Failed)
    assert (refused.session, refused.code) == ("s", "no_room")
    assert isinstance(other, Computed)
    shard.apply([Release("t")])
    assert computed(shard.apply([rows_of("s", len(long), [5])])).tokens == 1


def test_ranks_refuse_and_grow_alike(group: Callable[..., ShardGroup]) -> None:
    made = group(0, 4, (5, 3), (BUDGET // 8, BUDGET // 3))
    tokens = made.leader.free_tokens
    rows = [3 + n % 90 for n in range(BLOCK_TOKENS)]
    made.leader.apply([reserve(name, PROMPT, tokens) for name in "ab"])
    lengths, refusals = {"a": 0, "b": 0}, 0
    while refusals < 2:
        steps = [rows_of(name, length, rows) for name, length in lengths.items()]
        answers = made.leader.apply(steps)
        refusals = sum(isinstance(each, Failed) for each in answers)
        for each in answers:
            if isinstance(each, Computed):
                lengths[each.session] += each.tokens
        free = made.leader.free_tokens
        assert [runner.free_tokens for runner in made.runners] == [free, free]
    assert sum(lengths.values()) == tokens
    made.leader.apply([Release("a"), Release("b")])
    made.leader.self_test()
    await_free(made, tokens)


def test_what_one_rank_cannot_hold_is_refused_for_the_group(
    group: Callable[..., ShardGroup],
) -> None:
    made = group(0, 4, (5, 3), (BUDGET, BUDGET // 8))
    small = made.leader.free_tokens
    assert [runner.free_tokens for runner in made.runners] == [small, small]
    fillers = fill(made.leader)
    small = made.leader.free_tokens
    (refused,) = made.leader.apply([reserve("big", [1] * (small + 1), small + 1)])
    assert isinstance(refused, Reserved)
    assert refused.code == "no_room"
    made.leader.apply([Release(each) for each in fillers])
    assert generate([made.leader, lone_shard(4, 8)], PROMPT, GREEDY) == expected(PROMPT, GREEDY)


def await_free(made: ShardGroup, tokens: int) -> None:
    """Followers hear of a release a moment after their leader."""
    deadline = time.monotonic() + 5
    while {runner.free_tokens for runner in made.runners} != {tokens}:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("small", [0, 1], ids=["the leader is small", "the follower is small"])
def test_a_group_fills_up_and_empties_alike_on_every_rank(
    group: Callable[..., ShardGroup], small: int
) -> None:
    budgets = [BUDGET // 3, BUDGET // 3]
    budgets[small] = BUDGET // 8
    made = group(0, 4, (4, 4), tuple(budgets))
    free = [runner.free_tokens for runner in made.runners]
    assert free[0] == free[1]
    capacity = 129  # tokens: an odd size, so that blocks and reservations differ
    opened: list[str] = []
    for number in range(2 * min(free) // capacity):
        (answer,) = made.leader.apply([reserve(f"s{number}", PROMPT, capacity)])
        assert isinstance(answer, Reserved)
        opened += [] if answer.code else [f"s{number}"]
    batch = made.leader.apply([rows_of(session, 0, PROMPT) for session in opened])
    assert [type(each) for each in batch] == [Computed] * len(opened)
    assert len(opened) > 1
    made.leader.apply([Release(session) for session in opened])
    made.leader.self_test()
    await_free(made, free[0])


def test_two_sessions_that_fit_only_one_by_one_do_not_part_the_ranks(
    group: Callable[..., ShardGroup],
) -> None:
    made = group(0, 4, (4, 4), (BUDGET // 8, BUDGET // 3))
    half = [7] * (made.leader.free_tokens // 2 + BLOCK_TOKENS)
    answers = made.leader.apply([reserve(name, half, len(half)) for name in "st"])
    taken = [each.session for each in answers if isinstance(each, Reserved) and not each.code]
    assert len(answers) == 2
    steps = made.leader.apply([rows_of(session, 0, PROMPT) for session in taken])
    assert all(isinstance(each, Computed) for each in steps)
    assert len(taken) == 1
    made.leader.apply([Release("s"), Release("t")])
    made.leader.self_test()
    await_free(made, made.leader.free_tokens)
