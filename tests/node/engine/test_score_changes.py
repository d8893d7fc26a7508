"""Biases and penalties are those of the formulas, however ids come and are taken back."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from node.engine.sampler import Sampler
from node.engine.score_changes import GROWTH, ScoreChanges
from swarm.errors import EngineError
from swarm.wire.sampling_params import Sampling

VOCAB = 50
EVERY = Sampling(
    repetition_penalty=1.3,
    presence_penalty=0.7,
    frequency_penalty=-0.4,
    logit_bias=((3, 5.0), (7, -100.0), (49, 0.25)),
)
OPTIONS = {
    "bias": Sampling(logit_bias=((0, 1.5), (49, -2.5))),
    "repetition": Sampling(repetition_penalty=1.3),
    "presence": Sampling(presence_penalty=1.5),
    "frequency": Sampling(frequency_penalty=2.0),
    "every": EVERY,
}


def scores_of(seed: int, vocab: int = VOCAB) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=vocab).astype(np.float32)


def reference(
    sampling: Sampling, scores: npt.NDArray[np.float32], prompt: Sequence[int], own: Sequence[int]
) -> npt.NDArray[np.float64]:
    """What vLLM's formulas make of each score, one after the other."""
    changed = scores.astype(np.float64)
    for token, bias in sampling.logit_bias:
        changed[token] += bias
    for token in {*prompt, *own}:
        factor = sampling.repetition_penalty
        changed[token] *= factor if changed[token] < 0 else 1 / factor
    for token, times in Counter(own).items():
        changed[token] -= sampling.frequency_penalty * times + sampling.presence_penalty
    return changed


def changes_of(sampling: Sampling, prompt: Sequence[int], own: Sequence[int] = ()) -> ScoreChanges:
    found = ScoreChanges.of(sampling, np.array([*prompt, *own], np.int64), len(prompt))
    assert found
    return found


def changed(changes: ScoreChanges, seed: int = 1) -> npt.NDArray[np.float32]:
    scores = scores_of(seed)
    changes.apply(scores)
    return scores


@pytest.mark.parametrize("sampling", OPTIONS.values(), ids=OPTIONS)
@given(data=st.data())
def test_scores_are_those_of_the_formulas_whatever_came_and_went(
    sampling: Sampling, data: st.DataObject
) -> None:
    ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)
    prompt, own = data.draw(ids), data.draw(ids)
    known = data.draw(st.integers(0, len(own)))
    changes = changes_of(sampling, prompt, own[:known])
    for token in own[known:]:
        changes.note(token)
    np.testing.assert_allclose(
        changed(changes), reference(sampling, scores_of(1), prompt, own), rtol=1e-5, atol=1e-5
    )
    back = data.draw(st.integers(0, len(own)))
    changes.forget(np.array(own[back:], np.int64))
    np.testing.assert_array_equal(
        changed(changes), changed(changes_of(sampling, prompt, own[:back]))
    )


def test_a_repetition_penalty_has_the_bits_of_transformers() -> None:
    ids = np.random.default_rng(2).integers(0, VOCAB, 30)
    processor = RepetitionPenaltyLogitsProcessor(1.3)
    row = torch.from_numpy(ids)[None]
    expected = processor(row, torch.from_numpy(scores_of(1))[None])
    found = changed(changes_of(OPTIONS["repetition"], ids.tolist()))
    np.testing.assert_array_equal(found, expected[0].numpy())


def test_answers_of_more_ids_than_one_piece_are_counted() -> None:
    vocab = 3 * GROWTH
    changes = changes_of(Sampling(frequency_penalty=1.0), [5])
    for token in range(vocab):
        changes.note(token)
    scores = np.zeros(vocab, np.float32)
    changes.apply(scores)
    assert (scores == -1).all()


def test_an_id_of_the_prompt_alone_has_neither_presence_nor_frequency() -> None:
    sampling = Sampling(presence_penalty=2.0, frequency_penalty=2.0)
    np.testing.assert_array_equal(changed(changes_of(sampling, [1, 2, 3])), scores_of(1))


def test_neutral_options_change_nothing_and_cost_nothing() -> None:
    assert ScoreChanges.of(Sampling(temperature=0.7, top_p=0.9), np.zeros(3, np.int64), 3) is None


def test_a_bias_is_drawn_by_and_a_penalty_ends_a_repetition() -> None:
    logits = torch.zeros(5)
    assert Sampler(Sampling(logit_bias=((3, 1.0),)), [1], 0).next(1, logits)[0] == 3
    sampler = Sampler(Sampling(presence_penalty=1.0), [1], 0)
    assert [sampler.next(place, logits)[0] for place in range(1, 6)] == [0, 1, 2, 3, 4]


def test_ids_beyond_the_vocabulary_fail_their_session() -> None:
    with pytest.raises(EngineError, match="beyond the vocabulary"):
        Sampler(Sampling(presence_penalty=1.0), [9], 0).next(1, torch.zeros(5))
