"""A chain of stages generates what the whole model generates, whatever the batch around it."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.engine.parallel.allreduce import SocketReducer
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.checkpoint.folder import find_model
from swarm.errors import BadModel, EngineError, NoRoom, PeerLost
from swarm.wire.sampling_params import MOST_SPECULATED, Sampling

PROMPT = [5, 9, 33, 4, 71, 12, 50]
OPTIONS: dict[str, dict[str, Any]] = {"llama": {}, "qwen3": {"head_dim": 8}}
TWO_WAYS = ((0, 5, 8), (0, 5, 8))
THREE_WAYS = ((0, 4, 7, 8), (0, 4, 7, 8))
GREEDY = Sampling(max_tokens=12)
SAMPLED = Sampling(max_tokens=12, temperature=0.9, seed=3)
SAMPLINGS = {
    "greedy": GREEDY,
    "repetition penalty": replace(GREEDY, repetition_penalty=1.4),
    "temperature": SAMPLED,
    "top k": replace(SAMPLED, top_k=7),
    "top p": replace(SAMPLED, top_p=0.7),
    "min p": replace(SAMPLED, min_p=0.1),
    "all": Sampling(12, 1.3, 20, 0.9, 0.02, 1.2, seed=11),
}


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path: Path, save: Callable[..., Any]) -> Any:
    """A random whole model; its folder is `tmp_path`."""
    return save(tmp_path, request.param, OPTIONS[request.param])


@pytest.fixture
def llama(tmp_path: Path, save: Callable[..., Any]) -> Any:
    """A random whole Llama; its folder is `tmp_path`."""
    return save(tmp_path, "llama", {})


def generate_whole(model: Any, ids: list[int], sampling: Sampling) -> list[int]:
    """The ids that transformers' own `generate` adds."""
    torch.manual_seed(sampling.seed or 0)
    chosen: dict[str, Any] = {"do_sample": False}
    if not sampling.is_greedy:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
        chosen |= {"top_p": sampling.top_p, "min_p": sampling.min_p or None}
    out = model.generate(
        torch.tensor([ids]),
        max_new_tokens=sampling.max_tokens,
        repetition_penalty=sampling.repetition_penalty,
        **chosen,
    )
    return out[0, len(ids) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_three_stages_give_the_tokens_of_generate(
    name: str, model: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    stages = ring([stage(tmp_path, (0, 1)), stage(tmp_path, (1, 3)), stage(tmp_path, (3, 4))])
    tokens, finish = stages.generate(PROMPT, SAMPLINGS[name])
    assert tokens == generate_whole(model, PROMPT, SAMPLINGS[name])
    assert finish == "length"


@pytest.mark.parametrize("bounds", [TWO_WAYS, THREE_WAYS], ids=["5:3", "4:3:1"])
def test_uneven_ranks_give_the_tokens_of_generate(
    bounds: Any, model: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    stages = ring([stage(tmp_path, (0, 2), bounds), stage(tmp_path, (2, 4), bounds)])
    for sampling in (GREEDY, SAMPLED):
        expected = generate_whole(model, PROMPT, sampling)
        assert stages.generate(PROMPT, sampling)[0] == expected


def test_ranks_over_sockets_give_the_tokens_of_generate(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    left, right = socket.socketpair()
    reducers = [SocketReducer(0, {1: left}), SocketReducer(1, {0: right})]
    stages = ring([stage(tmp_path, (0, 4), TWO_WAYS, reducers)])
    assert stages.generate(PROMPT, GREEDY)[0] == generate_whole(llama, PROMPT, GREEDY)
    left.close()
    right.close()


def test_lost_rank_raises_and_leaves_the_length(
    llama: Any, tmp_path: Path, stage: Callable[..., Any]
) -> None:
    left, right = socket.socketpair()
    reducers = [SocketReducer(0, {1: left}), SocketReducer(1, {0: right})]
    leader = stage(tmp_path, (0, 2), TWO_WAYS, reducers)[0]
    leader.open("s", capacity=20)
    right.close()
    for _ in range(2):
        with pytest.raises(PeerLost, match="Rank 1"):
            leader.step([StepItem("s", 0, torch.tensor(PROMPT))])
    left.close()
    with pytest.raises(EngineError):
        leader.rollback("s", 1)  # nothing is written


def test_built_in_model_survives_every_split(
    stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    folder = find_model("swarm-tiny")
    if not (folder / "model.safetensors").is_file():
        pytest.skip("swarm-tiny is not built")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole.generation_config.eos_token_id = None
    split = ring(
        [stage(folder, (0, 1)), stage(folder, (1, 5), THREE_WAYS), stage(folder, (5, 8), TWO_WAYS)]
    )
    prompt = [1, *range(40, 60)]
    for sampling in (GREEDY, SAMPLED):
        assert split.generate(prompt, sampling)[0] == generate_whole(whole, prompt, sampling)


def test_eight_sessions_in_one_batch_do_not_disturb_each_other(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    stages = ring([stage(tmp_path, (0, 2)), stage(tmp_path, (2, 4), TWO_WAYS)])
    torch.manual_seed(2)
    prompts = {f"s{n}": torch.randint(3, 96, (3 + 11 * n,)).tolist() for n in range(8)}
    samplings = {
        name: replace(SAMPLED if n % 2 else GREEDY, max_tokens=6 + n, seed=n)
        for n, name in enumerate(prompts)
    }
    waiting = {name: list(ids) for name, ids in prompts.items()}
    new: dict[str, list[int]] = {name: [] for name in prompts}
    for name, ids in prompts.items():
        stages.open(name, ids, samplings[name])
    while waiting:
        rows = {name: ids[:16] for name, ids in waiting.items()}  # prefill in chunks of 16
        ready = [name for name, ids in waiting.items() if len(ids) <= 16]
        results = stages.step(rows, ready)
        waiting = {name: ids[16:] for name, ids in waiting.items() if len(ids) > 16}
        for name in ready:
            token = results[name].token
            new[name].append(token)
            if results[name].finish:
                stages.close(name)
            else:
                waiting[name] = [token]
    for name, ids in prompts.items():
        assert new[name] == generate_whole(llama, ids, samplings[name]), name


def test_replay_after_some_tokens_goes_on_with_the_same_tokens(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    stages = ring([stage(tmp_path, (0, 2)), stage(tmp_path, (2, 4))])
    whole, _ = stages.generate(PROMPT, SAMPLED)
    for kept in (1, 5, 11):
        ids = PROMPT + whole[:kept]
        assert stages.generate(ids, SAMPLED, generated=kept) == (whole[kept:], "length")


def test_a_step_sent_twice_changes_nothing(
    llama: Any, tmp_path: Path, stage: Callable[..., Any]
) -> None:
    (runner,) = stage(tmp_path, (0, 4))
    runner.open("s", capacity=30, history=PROMPT, sampling=SAMPLED)
    prompt = StepItem("s", 0, torch.tensor(PROMPT), sample=True)
    token = runner.step([prompt])[0].token
    following = StepItem("s", len(PROMPT), torch.tensor([token]), sample=True)
    second = runner.step([following])[0].token
    assert runner.step([prompt])[0].token == token
    assert runner.step([following])[0].token == second


def test_rollback_forgets_rows_and_draws_the_same_again(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    (runner,) = stage(tmp_path, (0, 4))
    whole, _ = ring([[runner]]).generate(PROMPT, SAMPLED)
    runner.open("s", capacity=30, history=PROMPT, sampling=SAMPLED)
    rows, position, tokens = PROMPT, 0, []
    for _ in range(6):
        token = runner.step([StepItem("s", position, torch.tensor(rows), sample=True)])[0].token
        position, rows = position + len(rows), [token]
        tokens.append(token)
    runner.rollback("s", len(PROMPT) + 2)
    ids = torch.tensor([tokens[2]])
    again = runner.step([StepItem("s", len(PROMPT) + 2, ids, sample=True)])[0].token
    assert [*tokens[:3], again] == whole[:4]


def test_bad_item_fails_alone(llama: Any, tmp_path: Path, stage: Callable[..., Any]) -> None:
    (runner,) = stage(tmp_path, (0, 4))
    runner.open("good", capacity=20, history=PROMPT)
    runner.open("gap", capacity=20, history=PROMPT)
    runner.open("full", capacity=3, history=PROMPT)
    runner.open("wild", capacity=20, history=PROMPT)
    ids = torch.tensor(PROMPT)
    results = runner.step(
        [
            StepItem("gap", 3, ids, sample=True),
            StepItem("good", 0, ids, sample=True),
            StepItem("full", 0, ids, sample=True),
            StepItem("wild", 0, torch.tensor([96]), sample=True),
            StepItem("absent", 0, ids, sample=True),
            StepItem("good", 0, ids, sample=True),
            StepItem("wild", 0, torch.zeros(2, 64)),
        ]
    )
    assert [result.error is None for result in results] == [False, True, *[False] * 5]
    assert results[1].token is not None


def test_hidden_rows_of_a_wrong_width_are_refused(
    llama: Any, tmp_path: Path, stage: Callable[..., Any]
) -> None:
    (runner,) = stage(tmp_path, (2, 3))
    runner.open("s", capacity=20)
    (result,) = runner.step([StepItem("s", 0, torch.zeros(2, 63))])
    assert "64" in str(result.error)
    (result,) = runner.step([StepItem("s", 0, torch.zeros(2, 64))])
    assert result.rows is not None
    assert result.rows.shape == (2, 64)


def test_not_a_number_in_one_session_never_reaches_the_next(
    llama: Any, tmp_path: Path, stage: Callable[..., Any]
) -> None:
    (runner,) = stage(tmp_path, (1, 3))
    clean, dirty = torch.ones(1, 64), torch.full((40, 64), float("nan"))
    for name in ("a", "b"):
        runner.open(name, capacity=64)
    runner.step([StepItem("a", 0, clean), StepItem("b", 0, dirty)])
    runner.close("b")
    runner.open("c", capacity=64)
    long = torch.ones(39, 64)
    runner.step([StepItem("a", 1, long), StepItem("c", 0, clean)])
    results = runner.step([StepItem("a", 40, clean), StepItem("c", 1, clean)])
    assert all(r.rows is not None and bool(r.rows.isfinite().all()) for r in results)


def test_budget_bounds_the_sessions(llama: Any, tmp_path: Path) -> None:
    spec = StageSpec(tmp_path, 0, 2, 0, (0, 8), (0, 8))
    row = 2 * 2 * 8 * 4 * 4  # keys and values, 2 layers, 8 heads of 4 values of 4 bytes
    weights = StageRunner.load(spec, budget_bytes=1 << 26).weight_bytes
    for tokens in (320, 383, 447):  # an odd number of whole blocks
        runner = StageRunner.load(spec, budget_bytes=weights + tokens * row)
        assert runner.free_tokens == 320
    runner.open("a", capacity=100)
    runner.open("b", capacity=64)
    assert runner.free_tokens == 128
    with pytest.raises(NoRoom):
        runner.open("c", capacity=129)
    runner.close("a")
    runner.close("a")
    runner.open("c", capacity=129)
    with pytest.raises(EngineError, match="of a budget of"):
        StageRunner.load(spec, budget_bytes=weights + 63 * row)


def test_bounds_must_end_at_the_models_own_units(llama: Any, tmp_path: Path) -> None:
    for bounds in (((0, 4, 16), (0, 4, 8)), ((0, 4, 8), (0, 4, 7))):
        spec = StageSpec(tmp_path, 0, 4, 0, *bounds)
        with pytest.raises(EngineError, match="must end"):
            StageRunner.load(spec, budget_bytes=1 << 26, reducer=SocketReducer(0, {}))
    with pytest.raises(EngineError, match="reducer"):
        StageRunner.load(StageSpec(tmp_path, 0, 4, 0, (0, 4, 8), (0, 4, 8)), budget_bytes=1 << 26)
    with pytest.raises(EngineError, match="Layer 4"):
        StageRunner.load(StageSpec(tmp_path, 0, 5, 0, (0, 8), (0, 8)), budget_bytes=1 << 26)


def test_loading_reports_progress_and_reads_only_its_layers(llama: Any, tmp_path: Path) -> None:
    seen: list[float] = []
    spec = StageSpec(tmp_path, 1, 3, 0, (0, 8), (0, 8))
    runner = StageRunner.load(spec, budget_bytes=1 << 26, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) == 2
    assert runner.weight_bytes <= runner.bytes_read <= 1.01 * runner.weight_bytes


def test_checkpoint_that_lacks_a_tensor_is_refused(llama: Any, tmp_path: Path) -> None:
    llama.config.attention_bias = True
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(BadModel, match="lacks"):
        StageRunner.load(StageSpec(tmp_path, 0, 4, 0, (0, 8), (0, 8)), budget_bytes=1 << 26)


def test_a_stage_without_a_tokenizer_takes_stop_strings_and_ends_at_stop_ids(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    (runner,) = stage(tmp_path, (0, 4))
    whole, _ = ring([[runner]]).generate(PROMPT, SAMPLED)
    unread = ring([[runner]]).generate(PROMPT, replace(SAMPLED, stop=("x",)))
    assert unread == (whole, "length"), "a client reads the text and says when to stop"
    stopped = ring([[runner]]).generate(PROMPT, replace(SAMPLED, stop_ids=(whole[2],)))
    assert stopped == (whole[: whole.index(whole[2]) + 1], "stop")


def test_ranks_agree_bit_by_bit(llama: Any, tmp_path: Path, stage: Callable[..., Any]) -> None:
    ranks = stage(tmp_path, (1, 3), THREE_WAYS)
    for rank in ranks:
        rank.open("s", capacity=20)
    items = [StepItem("s", 0, torch.randn(5, 64))]
    with ThreadPoolExecutor(3) as pool:
        rows = [result[0].rows for result in pool.map(lambda rank: rank.step(items), ranks)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_more_guesses_than_anybody_may_make_are_refused(
    llama: Any, tmp_path: Path, stage: Callable[..., Any]
) -> None:
    runner = stage(tmp_path, (0, 4))[0]
    runner.open("s", capacity=64, history=[5] * 8)
    rows = torch.tensor([5] * (MOST_SPECULATED + 2))
    (refused,) = runner.step([StepItem("s", 0, rows, True, (5,) * (MOST_SPECULATED + 1))])
    assert isinstance(refused.error, EngineError)
    (allowed,) = runner.step([StepItem("s", 0, rows, True, (5,) * MOST_SPECULATED)])
    assert allowed.error is None or "not known" in str(allowed.error)


def test_logits_of_many_sessions_are_made_in_bounded_memory(
    llama: Any, tmp_path: Path, stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = stage(tmp_path, (0, 4))[0]
    items = [StepItem(f"s{n}", 0, torch.tensor(PROMPT[: 2 + n]), True) for n in range(5)]

    def tokens() -> list[int | None]:
        for each in items:
            history = each.rows.tolist()
            runner.open(each.session, capacity=64, history=history, sampling=GREEDY)
        found = [result.token for result in runner.step(items)]
        for each in items:
            runner.close(each.session)
        return found

    at_once = tokens()
    drawn: list[int] = []
    forward = runner.forward.run

    def spy(rows: Any, spans: Any, kept: Any, wanted: Any) -> Any:
        drawn.append(sum(map(len, kept.values())))
        return forward(rows, spans, kept, wanted)

    monkeypatch.setattr(runner.forward, "run", spy)
    monkeypatch.setattr("node.engine.stage_runner.MOST_LOGIT_BYTES", 2 * 4 * 96)
    assert tokens() == at_once
    assert drawn == [2, 2, 1]
