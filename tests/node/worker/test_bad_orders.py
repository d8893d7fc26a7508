"""Orders that a bad client can cause: each fails its own session, and no other."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from node.worker.messages import Compute, Computed, Failed, Release, Reserve, Reserved
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import rows_to_bytes
from tests.node.worker.shards import (
    HIDDEN,
    generate,
    lone_shard,
    reserve,
    rows_of,
    shard_group,
)

PROMPT = [10, 200, 33, 47, 5, 81]
GREEDY = Sampling(max_tokens=12)

BAD_OPENS = {
    "half an id": replace(reserve("bad", PROMPT), body=b"abc"),
    "unknown option": replace(reserve("bad", PROMPT), sampling={"hotness": 1}),
    "wrong option": replace(reserve("bad", PROMPT), sampling={"temperature": "hot"}),
    "listed option": replace(reserve("bad", PROMPT), sampling={"stop": [["a"]]}),
    "more generated than there is": replace(reserve("bad", PROMPT), generated=99),
}
PENALTY = Sampling(repetition_penalty=1.5)
WARM = Sampling(temperature=1.0, seed=1)


@pytest.mark.parametrize("order", BAD_OPENS.values(), ids=BAD_OPENS)
def test_a_malformed_open_is_refused_alone(order: Reserve) -> None:
    shard = lone_shard(4, 8)
    before = shard.free_tokens
    (answer,) = shard.apply([order])
    assert isinstance(answer, Reserved)
    assert answer.code == "bad_frame"
    assert shard.free_tokens == before
    assert shard.self_test() > 0


@pytest.mark.parametrize("ids", [[5, 100_000], [-1, 5], [2**31 - 1], [5, -(2**31)]])
@pytest.mark.parametrize("generated", [0, 1])
def test_a_history_beyond_the_vocabulary_harms_only_its_session(
    ids: list[int], generated: int
) -> None:
    shard = lone_shard(0, 8)
    opened = reserve("bad", ids, 64, replace(PENALTY, stop=("x",)))
    (answer,) = shard.apply([replace(opened, generated=generated)])
    assert isinstance(answer, Reserved)
    if not answer.code:
        (result,) = shard.apply([rows_of("bad", 0, [5] * len(ids))])
        assert isinstance(result, Failed)
    assert shard.self_test() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("sampling", [WARM, GREEDY], ids=["sampled", "greedy"])
def test_rows_that_are_no_numbers_harm_only_their_session(value: float, sampling: Sampling) -> None:
    shard = lone_shard(4, 8)
    shard.apply([reserve("good", PROMPT, 64, WARM), reserve("bad", PROMPT, 64, sampling)])
    good, bad = torch.full((6, HIDDEN), 0.01), torch.full((6, HIDDEN), value)  # [tokens, hidden]
    alone = lone_shard(4, 8)
    alone.apply([reserve("good", PROMPT, 64, WARM)])
    (fine,) = alone.apply([hidden_rows("good", good)])
    answers = shard.apply([hidden_rows("good", good), hidden_rows("bad", bad)])
    by_session = {each.session: each for each in answers if isinstance(each, Computed | Failed)}
    beside = by_session["good"]
    assert isinstance(beside, Computed)
    assert isinstance(fine, Computed)
    assert beside.ids == fine.ids
    assert "bad" in by_session


@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=1e-42, seed=1),
        Sampling(temperature=1.0, repetition_penalty=1e-44, seed=1),
        Sampling(temperature=100.0, min_p=1.0, top_p=1e-9, top_k=1, seed=1),
        Sampling(repetition_penalty=1e-44),
    ],
)
def test_extreme_options_harm_only_their_session(options: Sampling) -> None:
    shard = lone_shard(0, 8)
    shard.apply([reserve("good", PROMPT, 64, WARM), reserve("bad", PROMPT, 64, options)])
    answers = shard.apply([rows_of("good", 0, PROMPT), rows_of("bad", 0, PROMPT)])
    by_session = {each.session: each for each in answers if isinstance(each, Computed | Failed)}
    assert set(by_session) == {"good", "bad"}
    assert isinstance(by_session["good"], Computed)
    assert shard.self_test() > 0


def hidden_rows(session: str, rows: torch.Tensor) -> Compute:
    dtype, body = rows_to_bytes(rows)
    return Compute(session, 0, len(rows), True, dtype, body=body)


BAD_STEPS = {
    "gap": rows_of("bad", 9, [1]),
    "too many": rows_of("bad", 0, [1] * 65),
    "beyond the vocabulary": rows_of("bad", 0, [99_999]),
    "negative": rows_of("bad", 0, [-1]),
    "other count": replace(rows_of("bad", 0, [1, 2]), tokens=3),
    "half an id": replace(rows_of("bad", 0, [1]), body=b"ab"),
    "nothing": replace(rows_of("bad", 0, []), tokens=0),
    "unknown session": rows_of("unknown", 0, [1]),
}


@pytest.mark.parametrize("order", BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_malformed_step_fails_its_session_alone(order: Compute) -> None:
    shard = lone_shard(0, 3)
    shard.apply([reserve("good", PROMPT), reserve("bad", PROMPT)])
    answers = shard.apply([rows_of("good", 0, PROMPT), order])
    kinds = {each.session: type(each) for each in answers if isinstance(each, Computed | Failed)}
    assert kinds == {"good": Computed, order.session: Failed}


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "i32"},
        {"dtype": "f64"},
        {"dtype": "i8"},
        {"body": b""},
        {"body": b"123"},
        {"body": bytes(4 * HIDDEN)},
        {"tokens": 5},
    ],
)
def test_malformed_rows_between_stages_fail_their_session_alone(
    changes: dict[str, Any],
) -> None:
    shard = lone_shard(3, 5)
    shard.apply([reserve("bad", PROMPT)])
    order = replace(hidden_rows("bad", torch.zeros(6, HIDDEN)), **changes)
    (answer,) = shard.apply([order])
    assert isinstance(answer, Failed)
    assert answer.code == "bad_frame"


def test_a_group_survives_malformed_orders_of_every_kind() -> None:
    made = shard_group(0, 8, (5, 3))
    for bad in BAD_OPENS.values():
        made.leader.apply([bad])
    made.leader.apply([reserve("bad", PROMPT)])
    for step in BAD_STEPS.values():
        made.leader.apply([step])
    made.leader.apply([Release("bad")])
    generated = generate([made.leader], PROMPT, GREEDY)
    made.close()
    assert generated == generate([lone_shard(0, 8)], PROMPT, GREEDY)
