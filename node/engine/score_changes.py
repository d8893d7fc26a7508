"""ScoreChanges: the biases and penalties of one session, on what its ids have been so far."""

from typing import Self

import numpy as np
import numpy.typing as npt

from swarm.wire.sampling_params import Sampling

Ids = npt.NDArray[np.integer]
GROWTH = 256  # ids


class ScoreChanges:
    """Counts a session's ids and changes their scores; nothing of it grows with the vocabulary.

    In vLLM's order: biases, then the repetition penalty (of ids in prompt or answer, as in
    transformers), then frequency and presence penalty (of ids in the answer, as in OpenAI's API).
    """

    def __init__(self, sampling: Sampling, ids: Ids, prompt: int) -> None:
        self._repetition = np.float32(sampling.repetition_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._penalises = bool(self._repetition != 1 or self._frequency or self._presence)
        # of each id that has occurred: the id, its times in the answer, whether it is in the prompt
        asked = np.unique(ids[:prompt]) if self._repetition != 1 else np.empty(0, np.int64)
        self._ids = asked.astype(np.int64)
        self._times = np.zeros(len(asked), np.float32)
        self._is_asked = np.ones(len(asked), np.bool_)
        self._size = len(asked)
        self._places = {int(token): place for place, token in enumerate(asked)}
        for token in ids[prompt:].tolist():
            self.note(token)

    @classmethod
    def of(cls, sampling: Sampling, ids: Ids, prompt: int) -> Self | None:
        """The changes that a session's options ask for, if any; the first `prompt` ids are its."""
        return cls(sampling, ids, prompt) if sampling.changes_scores else None

    def note(self, token: int) -> None:
        """An id was added to the answer."""
        if not self._penalises:
            return
        place = self._places.get(token)
        if place is None:
            place = self._added(token)
        self._times[place] += 1

    def forget(self, ids: Ids) -> None:
        """The last ids of the answer were taken back."""
        if self._penalises:
            for token in ids.tolist():
                self._times[self._places[token]] -= 1

    def apply(self, scores: npt.NDArray[np.float32]) -> None:
        """Change the scores [vocab] of the next id in place; every id must be within them."""
        with np.errstate(all="ignore"):  # what is not finite then, fails its session
            scores[self._bias_ids] += self._biases
            self._penalise(scores)

    def _penalise(self, scores: npt.NDArray[np.float32]) -> None:
        ids = self._ids[: self._size]
        times = self._times[: self._size]
        found = scores[ids]
        if self._repetition != 1:
            found = self._repeated(found, self._is_asked[: self._size] | (times > 0))
        found -= self._frequency * times
        found -= self._presence * (times > 0)
        scores[ids] = found

    def _repeated(
        self, scores: npt.NDArray[np.float32], has_come: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        less = np.where(scores < 0, scores * self._repetition, scores / self._repetition)
        return np.where(has_come, less, scores)

    def _added(self, token: int) -> int:
        place = self._places[token] = self._size
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(GROWTH, np.int64)])
            self._times = np.concatenate([self._times, np.zeros(GROWTH, np.float32)])
            self._is_asked = np.concatenate([self._is_asked, np.zeros(GROWTH, np.bool_)])
        self._ids[place] = token
        self._size += 1
        return place
