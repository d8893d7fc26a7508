"""Tiny random models and rings of stages, run by threads in this process."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from node.engine.parallel.allreduce import LocalReducer, Reducer
from node.engine.shard_io import StageSpec, StepItem, StepResult
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling

BUDGET = 1 << 25  # bytes of a runner: small models, small caches
WHOLE = ((0, 8), (0, 8))  # of the tiny models: 8 KV heads, 8 MLP blocks
RANKS = ThreadPoolExecutor(8)  # kept: a thread of its own for every step costs more than the step
Bounds = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bars() -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True, scope="session")
def _flex_attention_as_written() -> None:
    """Run torch's plain form of flex attention, not a trace of it: that takes seconds a shape."""
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def save_model(folder: Path, architecture: str, options: dict[str, Any]) -> PreTrainedModel:
    """Write a random model of 4 layers, 8 KV heads and 8 MLP blocks; return it uncut."""
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 1000,  # 8 blocks, the last one short
        "vocab_size": 96,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.15,
    }
    torch.manual_seed(7)
    wanted = {name: value for name, value in (sizes | options).items() if value is not None}
    config = CONFIG_MAPPING[architecture](**wanted)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, each in model.state_dict().items():
            if each.ndim < 2 or "bias" in name:  # norms and biases are born even: make them matter
                each.add_(torch.randn_like(each) * 0.2)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return model


@dataclass
class Ring:
    """Stages in order, each a list of ranks that run in threads of their own."""

    stages: list[list[StageRunner]]
    positions: dict[str, int] = field(default_factory=dict)

    def open(self, session: str, ids: list[int], sampling: Sampling, *, generated: int = 0) -> None:
        for runner in (rank for stage in self.stages for rank in stage):
            capacity = len(ids) - generated + sampling.max_tokens
            runner.open(
                session, capacity=capacity, history=ids, generated=generated, sampling=sampling
            )
        self.positions[session] = 0

    def step(self, rows: dict[str, list[int]], sample: Sequence[str] = ()) -> dict[str, StepResult]:
        """Push ids of many sessions through all stages; return the last stage's results."""
        inputs = {name: torch.tensor(ids) for name, ids in rows.items()}
        results: list[StepResult] = []
        for stage in self.stages:
            items = [
                StepItem(name, self.positions[name], each, sample=name in sample)
                for name, each in inputs.items()
            ]
            results = step_together(stage, items)
            assert [result.error for result in results] == [None] * len(results)
            inputs = {r.session: r.rows for r in results if r.rows is not None}
        for name, ids in rows.items():
            self.positions[name] += len(ids)
        return {result.session: result for result in results}

    def generate(
        self, ids: list[int], sampling: Sampling, *, session: str = "s", generated: int = 0
    ) -> tuple[list[int], str]:
        """Open, prefill, decode to the end, close; return the new ids and the finish."""
        self.open(session, ids, sampling, generated=generated)
        rows, new, finish = ids, [], ""
        while not finish:
            result = self.step({session: rows}, [session])[session]
            assert result.token is not None
            rows, finish = [result.token], result.finish
            new.append(result.token)
        self.close(session)
        return new, finish

    def close(self, session: str) -> None:
        for runner in (rank for stage in self.stages for rank in stage):
            runner.close(session)


def step_together(stage: list[StageRunner], items: list[StepItem]) -> list[StepResult]:
    """Run one step on every rank of a stage; return rank 0's results, raise what a rank raises."""
    others = [RANKS.submit(rank.step, items) for rank in stage[1:]]
    results = stage[0].step(items)
    for other in others:
        assert all(result.token is None for result in other.result())
    return results


def load_stage(
    folder: Path,
    layers: tuple[int, int],
    bounds: Bounds = WHOLE,
    reducers: Sequence[Reducer] = (),
    **options: Any,
) -> list[StageRunner]:
    """Load every rank of one stage."""
    ranks = len(bounds[0]) - 1
    chosen = list(reducers) or (LocalReducer.group(ranks) if ranks > 1 else [])
    specs = [StageSpec(folder, *layers, rank, *bounds, **options) for rank in range(ranks)]
    return [
        StageRunner.load(
            spec, budget_bytes=BUDGET, reducer=chosen[spec.rank] if ranks > 1 else None
        )
        for spec in specs
    ]


@pytest.fixture(scope="session")
def save() -> Callable[..., PreTrainedModel]:
    """The function that writes a random model."""
    return save_model


@pytest.fixture(scope="session")
def stage() -> Callable[..., list[StageRunner]]:
    """The function that loads one stage."""
    return load_stage


@pytest.fixture(scope="session")
def ring() -> type[Ring]:
    """Stages that are run one after the other."""
    return Ring
