"""Streams without end, each answer held against what it should be, and its pauses after faults."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.chaos.faults import Fault
from benchmarks.models import model_folder, prompt_ids, references
from client.async_client import Client
from client.generation import Generation
from swarm.errors import SwarmError
from swarm.model_spec import BUILT_IN

logger = logging.getLogger(__name__)

PROMPT, NEW = 16, 400
PROMPTS = 4
FELT_SECONDS = 15.0  # after a fault, in which a pause is laid to it
TIMEOUT_SECONDS = 60.0
SAMPLED = 0.8  # temperature of every second question


@dataclass(frozen=True, slots=True)
class Asked:
    """A question whose answer is known."""

    prompt: int
    is_sampled: bool

    @property
    def options(self) -> dict[str, Any]:
        """How it is asked."""
        temperature = SAMPLED if self.is_sampled else 0.0
        return {"max_tokens": NEW, "temperature": temperature, "seed": self.prompt, "speculate": 0}


ALL = [Asked(prompt, is_sampled) for prompt in range(PROMPTS) for is_sampled in (False, True)]


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest time between two pieces of one stream, after a fault."""

    fault: str
    seconds: float
    is_affected: bool  # the stream had to go elsewhere


@dataclass(slots=True)
class Tally:
    """What became of the streams."""

    finished: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    broken: int = 0  # of those that failed: after their first token
    pauses: list[Pause] = field(default_factory=list)


class Streams:
    """Clients that ask one question after the other."""

    def __init__(
        self,
        client: Client,
        expected: Mapping[Asked, list[int]],
        faults: Sequence[Fault],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._client, self._expected, self._faults = client, expected, faults
        self._timeout_seconds = timeout_seconds
        self.tally = Tally()

    async def run(self, number: int, over: asyncio.Event) -> None:
        """Ask until it is over."""
        chance = random.Random(number)
        while not over.is_set():
            await self._ask(chance.choice(ALL))

    async def _ask(self, asked: Asked) -> None:
        gaps = Gaps(self._faults)
        try:
            generation = await answer(self._client, asked, gaps.note, self._timeout_seconds)
        except SwarmError as error:
            self.tally.failed[f"{type(error).__name__}: {error}"[:100]] += 1
            self.tally.broken += gaps.count > 0
            return
        self.tally.finished += 1
        self.tally.wrong += list(generation.token_ids) != self._expected[asked]
        for pause in gaps.pauses(generation.replays):
            self.tally.pauses.append(pause)
            if pause.is_affected:
                logger.info("%.2f s after %s", pause.seconds, pause.fault)


async def answer(
    client: Client,
    asked: Asked,
    on_piece: Callable[[], None],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Generation:
    """The whole answer to a question; raises SwarmError."""
    prompt = prompt_ids(PROMPT, asked.prompt)
    async with client.stream(prompt, timeout_seconds=timeout_seconds, **asked.options) as pieces:
        async for _ in pieces:
            on_piece()
    return pieces.generation


async def expected_answers(client: Client) -> dict[Asked, list[int]]:
    """What each question should be answered with."""
    folder = model_folder(BUILT_IN, Path())
    greedy = await asyncio.to_thread(references, folder, PROMPTS, PROMPT, NEW)
    sampled = [asked for asked in ALL if asked.is_sampled]
    answers = await asyncio.gather(*(answer(client, asked, lambda: None) for asked in sampled))
    found = {asked: greedy[asked.prompt] for asked in ALL if not asked.is_sampled}
    return found | {a: list(g.token_ids) for a, g in zip(sampled, answers, strict=True)}


class Gaps:
    """The longest time between two pieces of one stream after each fault that could be felt."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = faults  # grows meanwhile
        self.count = 0
        self.longest: dict[int, float] = {}  # by the fault's place
        self._last = perf_counter()

    def note(self) -> None:
        """A piece came."""
        before, self._last = self._last, perf_counter()
        self.count += 1
        if self.count > 1 and (felt := self._felt(before, self._last)) is not None:
            seconds = self._last - max(before, self._faults[felt].at)
            self.longest[felt] = max(self.longest.get(felt, 0.0), seconds)

    def _felt(self, begin: float, end: float) -> int | None:
        """The first fault within a gap, else the last one shortly before it."""
        for place, fault in enumerate(self._faults):
            if begin < fault.at <= end:
                return place
        past = [p for p, f in enumerate(self._faults) if begin - FELT_SECONDS < f.at <= begin]
        return past[-1] if past else None

    def pauses(self, changes: int) -> Iterator[Pause]:
        """Each fault's; a stream that changed its route so often felt that in its longest ones."""
        ordered = sorted(self.longest.items(), key=lambda each: -each[1])
        for rank, (place, seconds) in enumerate(ordered):
            yield Pause(self._faults[place].kind, seconds, rank < changes)
