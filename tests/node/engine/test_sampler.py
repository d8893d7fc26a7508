"""Tokens come out as from transformers, once per position, and end where they should."""

from typing import Any

import pytest
import torch

from node.engine.sampler import Sampler, processors_of
from swarm.errors import EngineError
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_logprobs import LEAST_LOGPROB, logprobs_of_bytes

SAMPLED = Sampling(max_tokens=5, temperature=0.8, seed=4)


def logits_for(position: int, vocab: int = 50) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(position))


def draw(sampler: Sampler, start: int, count: int) -> list[int]:
    return [sampler.next(start + n, logits_for(start + n))[0] for n in range(count)]


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(Sampling(), [1, 2], 0).next(2, torch.tensor([0.0, 3.0, 1.0])) == (1, "")


def test_known_position_is_repeated_whatever_the_logits() -> None:
    sampler = Sampler(SAMPLED, [1, 2], 0)
    tokens = draw(sampler, 2, 3)
    assert [sampler.next(2 + n, logits_for(99))[0] for n in range(3)] == tokens


def test_replay_continues_the_random_stream() -> None:
    tokens = draw(Sampler(SAMPLED, [1, 2], 0), 2, 5)
    for kept in range(1, 5):
        replayed = Sampler(SAMPLED, [1, 2, *tokens[:kept]], kept)
        assert draw(replayed, 2 + kept, 5 - kept) == tokens[kept:]


def test_rollback_rewinds_the_random_stream_even_without_a_seed() -> None:
    sampler = Sampler(Sampling(temperature=2.0), [1, 2], 0)
    tokens = draw(sampler, 2, 5)
    sampler.rollback(4)
    assert sampler.ids == [1, 2, *tokens[:2]]
    assert draw(sampler, 4, 3) == tokens[2:]
    sampler.rollback(0)
    assert sampler.ids == [1, 2]


def test_rollback_takes_back_what_penalties_counted() -> None:
    sampler = Sampler(Sampling(max_tokens=9, presence_penalty=2.0), [1, 2], 0)
    tokens = [sampler.next(2 + n, torch.zeros(9))[0] for n in range(5)]
    sampler.rollback(4)
    assert [sampler.next(4 + n, torch.zeros(9))[0] for n in range(3)] == tokens[2:]


def test_end_by_length_counts_replayed_tokens() -> None:
    sampler = Sampler(SAMPLED, [1, 2, 3, 4], 2)
    assert [sampler.next(4 + n, logits_for(n))[1] for n in range(3)] == ["", "", "length"]


def test_end_by_id() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert Sampler(Sampling(stop_ids=(1,)), [2], 0).next(1, logits) == (1, "stop")


def test_unknown_ids_before_the_position_are_an_error() -> None:
    sampler = Sampler(Sampling(), [1, 2], 0)
    for position in (1, 3):
        with pytest.raises(EngineError):
            sampler.next(position, logits_for(0))
    with pytest.raises(EngineError):
        Sampler(Sampling(), [1], 2)


def told_of(options: Sampling, logits: torch.Tensor, ids: list[int]) -> Any:
    body = Sampler(options, [1], 0).logprobs_of(logits, ids)
    return logprobs_of_bytes(body, ids, options.top_of(logits.shape[-1]) or 0, logits.shape[-1])


def test_log_probabilities_are_those_of_the_model_before_any_option() -> None:
    rows = torch.stack([logits_for(n) for n in range(3)])
    changed = Sampling(
        temperature=0.3,
        top_k=2,
        repetition_penalty=2.0,
        logit_bias=((4, 50.0),),
        top_logprobs=5,
    )
    for options in (Sampling(top_logprobs=5), changed):
        told = told_of(options, rows, [7, 4])
        for row, each in zip(rows, told, strict=False):
            whole = row - row.exp().sum().log()
            assert each.logprob == pytest.approx(float(whole[each.id]), abs=1e-5)
            best = sorted(range(len(row)), key=lambda token: -row[token])[:5]
            assert [token for token, _ in each.top] == best
            assert [value for _, value in each.top] == pytest.approx(whole[best].tolist(), abs=1e-5)


def test_log_probabilities_of_small_vocabularies_and_impossible_ids_are_numbers() -> None:
    row = torch.tensor([[0.0, float("-inf"), 0.0]])
    (told,) = told_of(Sampling(top_logprobs=20), row, [1])
    assert told.logprob == LEAST_LOGPROB
    assert len(told.top) == 3


def test_nothing_is_told_to_whoever_does_not_ask() -> None:
    assert Sampler(SAMPLED, [1], 0).logprobs_of(logits_for(1)[None], [3]) == b""


def test_neutral_options_add_no_processor() -> None:
    assert len(processors_of(Sampling(temperature=1.0))) == 0
    every = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.1)
    assert len(processors_of(every)) == 4
