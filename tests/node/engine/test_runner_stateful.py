"""Any order of opens, steps, guesses, rollbacks and closes: the same tokens, and no block left."""

import itertools
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from node.engine.kv_cache import block_manager
from node.engine.kv_cache.admission import Admission
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.kv_cache.prefix_cache import Prompt
from node.engine.shard_io import StageSpec, StepItem, StepResult
from node.engine.stage_runner import StageRunner
from swarm.errors import EngineError, NoRoom
from swarm.wire.sampling_params import Sampling
from tests.node.engine.conftest import save_model

NEW = 12  # tokens of a whole answer
PROMPTS = (
    (5,),
    (7, 8, 9),
    tuple(range(10, 50)),
    tuple(range(90, 3, -1)),
    (*range(90, 3, -1), *range(4, 60)),  # begins like the one before
    tuple(range(10, 71)),  # grows beyond a block
)
WAYS = (
    Sampling(max_tokens=NEW, speculate=0),
    Sampling(max_tokens=NEW, temperature=1.0, seed=3, speculate=0),
)
ROOM_TOKENS = 1024
HEADROOM = 4  # tokens of an answer that are reserved here: steps beyond may find no room


@cache
def runner() -> StageRunner:
    """One runner for all examples: what one of them leaves, another one finds."""
    with TemporaryDirectory() as folder:
        save_model(Path(folder), "llama", {"tie_word_embeddings": False})
        spec = StageSpec(Path(folder), 0, 4, 0, (0, 8), (0, 8))
        made = StageRunner.load(spec, budget_bytes=1 << 26)
    made.shrink(ROOM_TOKENS)
    return made


@cache
def expected(prompt: tuple[int, ...], sampling: Sampling) -> list[int]:
    """What a session says that is alone and never disturbed."""
    alone, ids = runner(), list(prompt)
    alone.open("alone", capacity=len(prompt) + NEW, history=prompt, sampling=sampling)
    rows, position = ids, 0
    for _ in range(NEW):
        (result,) = alone.step([StepItem("alone", position, torch.tensor(rows), sample=True)])
        assert result.token is not None
        position, rows = position + len(rows), [result.token]
        ids = [*ids, result.token]
    alone.close("alone")
    return ids[len(prompt) :]


@dataclass
class Told:
    """What a session should know."""

    name: str
    prompt: tuple[int, ...]
    sampling: Sampling
    length: int = 0  # rows written
    known: int = 0  # ids drawn
    went_back: bool = False
    guesses: list[int] = field(default_factory=list)  # of its step under way

    @property
    def ids(self) -> list[int]:
        """Prompt, and what was drawn so far."""
        return [*self.prompt, *expected(self.prompt, self.sampling)[: self.known]]

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete."""
        return self.known == NEW

    def item(self, rows: int, guesses: list[int]) -> StepItem:
        """The next rows; guesses only behind the last known id."""
        ids = self.ids[self.length : self.length + rows]
        is_end = self.length + len(ids) == len(self.ids)
        self.guesses = guesses[: NEW - self.known - 1] if is_end else []
        tensor = torch.tensor([*ids, *self.guesses])
        return StepItem(self.name, self.length, tensor, is_end, tuple(self.guesses))

    def take(self, item: StepItem, result: StepResult) -> None:
        """Check a result against the undisturbed session."""
        assert result.error is None
        own = len(item.rows) - len(self.guesses)
        assert bool(result.ids) == item.sample
        answer = expected(self.prompt, self.sampling)
        assert list(result.ids) == answer[self.known : self.known + len(result.ids)]
        right = next((n for n, g in enumerate(self.guesses) if g != answer[self.known + n]), None)
        count = len(self.guesses) if right is None else right
        assert len(result.ids) == (count + 1 if item.sample else 0)
        self.length += own + (count if item.sample else 0)
        self.known += len(result.ids)
        assert (result.finish == "length") == (item.sample and self.known == NEW)


class Sessions(RuleBasedStateMachine):
    """A runner and what its sessions should know."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, Told] = {}
        self.opened = 0

    @rule(
        target=names,
        prompt=st.sampled_from(PROMPTS),
        sampling=st.sampled_from(WAYS),
        owner=st.sampled_from(["", "me", "you"]),
    )
    def open(self, prompt: tuple[int, ...], sampling: Sampling, owner: str) -> object:
        name = f"s{self.opened}"
        self.opened += 1
        try:
            runner().open(name, capacity=len(prompt) + NEW, history=prompt, sampling=sampling)
        except NoRoom:
            return multiple()
        held = runner().share(name, Prompt.of(owner, prompt))
        assert held < len(prompt)
        self.sessions[name] = Told(name, prompt, sampling, held)
        return name

    @rule()
    def step_all(self) -> None:
        """A turn of the ring for everybody: prompts at once, then one id each."""
        self.step(list(self.sessions), 100, [], 0)

    @rule(
        chosen=st.lists(names, min_size=1, max_size=6, unique=True),
        rows=st.integers(1, 40),
        guesses=st.just([]) | st.lists(st.integers(0, 95), max_size=2),
        lucky=st.sampled_from([0, 0, 0, 0, 1, 2]),
    )
    def step(self, chosen: list[str], rows: int, guesses: list[int], lucky: int) -> None:
        told = [self.sessions[name] for name in chosen if not self.sessions[name].is_over]
        items = []
        for each in told:
            right = expected(each.prompt, each.sampling)[each.known : each.known + lucky]
            items.append(each.item(rows, [*right, *guesses]))
        bad = StepItem("nobody", 0, torch.tensor([1]))
        results = runner().step([*items, bad])
        assert isinstance(results[-1].error, EngineError)
        for each, item, result in zip(told, items, results, strict=False):
            if isinstance(result.error, NoRoom):  # nothing has happened: it may try again
                is_promised = item.position + len(item.rows) <= len(each.prompt) + HEADROOM
                assert each.went_back or not is_promised
                continue
            each.take(item, result)

    @rule(name=names, share=st.floats(0, 1))
    def roll_back(self, name: str, share: float) -> None:
        each = self.sessions[name]
        each.length = int(each.length * share)
        each.went_back = True  # perhaps into blocks that others share: nothing is promised then
        runner().rollback(name, each.length)
        each.known = min(each.known, max(0, each.length + 1 - len(each.prompt)))

    @rule(name=consumes(names))
    def close(self, name: str) -> None:
        runner().close(name)
        del self.sessions[name]

    @invariant()
    def holds_just_the_open_sessions(self) -> None:
        store = runner()._store
        assert set(store.manager.sessions) == set(self.sessions)
        assert set(runner()._samplers) == set(self.sessions)
        tables = [store.manager.table(name) for name in self.sessions]
        blocks = {block for table in tables for block in table.blocks}
        outstanding = sum(table.outstanding for table in tables)
        assert runner().free_tokens == ROOM_TOKENS - (len(blocks) + outstanding) * BLOCK_TOKENS

    def teardown(self) -> None:
        for name in self.sessions:
            runner().close(name)
        assert runner().free_tokens == ROOM_TOKENS
        runner()._admission = Admission(time.monotonic)  # it remembers for some seconds


def run(examples: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt, sampling in itertools.product(PROMPTS, WAYS):  # while there is room for sure
        expected(prompt, sampling)
    monkeypatch.setattr(block_manager, "HEADROOM_TOKENS", HEADROOM)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=checks,
        derandomize=True,
    )
    run_state_machine_as_test(Sessions, settings=limits)


def test_a_few_hundred_moves_leave_the_tokens_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run(8, 30, monkeypatch)


@pytest.mark.slow
def test_ten_thousand_moves_leave_the_tokens_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run(200, 50, monkeypatch)
