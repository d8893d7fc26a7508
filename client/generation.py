"""Generation: what came of one request, how fast, over whom, and where the time went."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from client.routing.route import Route
from swarm.records import Member, StageAdvert
from swarm.wire.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Seconds that all tokens together spent at one stage of the route."""

    start: int
    end: int
    queue_seconds: float
    compute_seconds: float
    network_seconds: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation; prints as its text."""

    text: str
    token_ids: tuple[int, ...]  # new ones only, the one that ended it included
    finish_reason: str  # "stop" or "length"
    ttft_seconds: float  # from the request to the first token
    tokens_per_second: float  # over the whole request
    route: tuple[StageAdvert, ...]  # the last one, if there were several
    timings: tuple[StageTiming, ...] = ()
    replays: int = 0  # how often it started again on another route
    drafted: int = 0  # ids that the last stage guessed ahead
    accepted: int = 0  # those of them that came true
    prompt_tokens: int = 0  # ids of the prompt, those of a chat template included
    cached_tokens: int = 0  # leading ones of them that every stage had computed before
    logprobs: tuple[TokenLogprobs, ...] = ()  # of `token_ids`, if they were asked for
    others: "tuple[Generation, ...]" = ()  # further answers to the same prompt, if n is above 1

    def __str__(self) -> str:
        return self.text

    @property
    def choices(self) -> "tuple[Generation, ...]":
        """All n answers, this one first."""
        return (self, *self.others)

    def to_json(self) -> dict[str, Any]:
        """Every field in plain values; the route as stages with start, end and shards."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "ttft_seconds": self.ttft_seconds,
            "tokens_per_second": self.tokens_per_second,
            "route": [stage_json(stage) for stage in self.route],
            "timings": [asdict(timing) for timing in self.timings],
            "replays": self.replays,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "logprobs": [each.to_json() for each in self.logprobs],
            "others": [each.to_json() for each in self.others],
        }


class StageTimes:
    """Where the time of one generation went, stage by stage."""

    def __init__(self) -> None:
        self._spent: dict[tuple[int, int], list[int]] = {}  # queue, compute, network us

    def add(self, route: Route, hops: Sequence[Sequence[int]]) -> None:
        """A token came with what every hop took."""
        for stage, times in zip(route.stages, hops, strict=False):
            spent = self._spent.setdefault((stage.start, stage.end), [0, 0, 0])
            for part, microseconds in enumerate(times[:3]):
                spent[part] += microseconds

    def timings(self) -> tuple[StageTiming, ...]:
        """Seconds by stage."""
        return tuple(
            StageTiming(start, end, *(microseconds / 1e6 for microseconds in spent))
            for (start, end), spent in self._spent.items()
        )


class Stopwatch:
    """Takes the time of one generation, token by token."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first = self._last = started
        self._tokens = 0

    def token(self, now: float) -> None:
        """A token came."""
        if not self._tokens:
            self._first = now
        self._tokens += 1
        self._last = now

    @property
    def ttft_seconds(self) -> float:
        """From the request to the first token."""
        return self._first - self._started

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the time from the request to the last of them."""
        seconds = self._last - self._started
        return self._tokens / seconds if seconds > 0 else 0.0


def stage_json(stage: StageAdvert) -> dict[str, Any]:
    """A stage of a route in plain values."""
    shards = [_shard_json(member) for member in stage.members]
    return {"start": stage.start, "end": stage.end, "shards": shards}


def _shard_json(member: Member) -> dict[str, Any]:
    values: dict[str, Any] = asdict(member)
    return values
