"""Transcript: the ids of one generation, put in order however late or often they arrive."""

from collections.abc import Iterator, Sequence

from swarm.wire.token_logprobs import TokenLogprobs

Arrived = tuple[int, str, Sequence[TokenLogprobs]]  # id, finish, its log-probabilities


class Transcript:
    """Prompt and new ids; tokens come with their position, may repeat and may overtake."""

    def __init__(self, prompt: Sequence[int], most: int, stop_ids: Sequence[int] = ()) -> None:
        self.prompt = tuple(prompt)
        self.generated: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # of these, if they come
        self.finish = ""  # "stop" or "length" once it is over
        self._most = most
        self._stop_ids = frozenset(stop_ids)
        self._waiting: dict[int, Arrived] = {}  # by position
        self._read = 0  # new ids that somebody has read

    @property
    def ids(self) -> list[int]:
        """Everything so far: what a replay must prefill."""
        return [*self.prompt, *self.generated]

    def add(
        self,
        position: int,
        ids: Sequence[int],
        finish: str,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> list[int]:
        """Take the ids that start at `position`; return those that are new and in order."""
        for offset, token in enumerate(ids):
            if self._next <= position + offset < len(self.prompt) + self._most:
                is_last = offset == len(ids) - 1
                own = logprobs[offset : offset + 1]
                self._waiting[position + offset] = token, finish if is_last else "", own
        fresh = []
        while not self.finish and (found := self._waiting.pop(self._next, None)) is not None:
            token, told, own = found
            self.generated.append(token)
            self.logprobs += own
            fresh.append(token)
            self.finish = told or self._own_finish(token)
        if finish and not self.finish and position == self._next and not ids:
            self.finish = finish
        return fresh

    def unread(self) -> Iterator[int]:
        """The new ids that nobody has read yet, each once."""
        while self._read < len(self.generated):
            self._read += 1
            yield self.generated[self._read - 1]

    def stop(self) -> None:
        """End behind the id that was read last: a stop string is complete; drop the others."""
        del self.generated[self._read :]
        del self.logprobs[self._read :]
        self.finish = "stop"

    def begin_epoch(self) -> None:
        """Forget ids that came too early: another route computes them again."""
        self._waiting.clear()

    @property
    def _next(self) -> int:
        return len(self.prompt) + len(self.generated)

    def _own_finish(self, token: int) -> str:
        if token in self._stop_ids:
            return "stop"
        return "length" if len(self.generated) >= self._most else ""
