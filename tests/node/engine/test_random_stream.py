"""A replay draws on where the session stopped, at once or after a walk that no step waits for."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from node.engine import random_stream
from node.engine.random_stream import RandomStream, Redraws, Twists, Walk, Walker, is_known
from node.engine.sampler import Sampler
from swarm.errors import NoRoom
from swarm.wire.sampling_params import Sampling

QWEN = 151_936  # ids of its vocabulary


def drawn(seed: int, draws: int, vocab: int) -> torch.Tensor:
    """The state of torch's generator after so many draws."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        torch.multinomial(torch.full((1, vocab), 1.0 / vocab), 1, generator=generator)
    return generator.get_state()


def test_this_torch_is_known() -> None:
    assert is_known()


@pytest.mark.parametrize("kind", [Twists, Redraws])
@pytest.mark.parametrize(
    ("seed", "draws", "vocab"),
    [(0, 1, 1), (5, 7, 96), (2**63 - 1, 3, 312), (9, 1, 1024), (11, 13, 48), (4, 2, 5000)],
)
def test_a_walk_ends_where_drawing_ends(
    kind: Callable[[int, int, int], Walk], seed: int, draws: int, vocab: int
) -> None:
    walk = kind(seed, draws, vocab)
    while not walk.is_done:
        walk.go_on()
    assert torch.equal(walk.state(), drawn(seed, draws, vocab))


def test_a_long_walk_is_not_waited_for_and_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random_stream, "QUICK_TWISTS", 10)
    weights = torch.rand(1, 5000, generator=torch.Generator().manual_seed(1))
    whole = RandomStream(Walker(), 3, 0)
    tokens = [whole.draw(place, weights) for place in range(6)]
    walker = Walker()
    monkeypatch.setattr(walker, "_start", lambda: None)  # the other thread is not there yet
    late = RandomStream(walker, 3, 5)
    for _ in range(2):
        with pytest.raises(NoRoom, match="caught up"):
            late.draw(5, weights)
    walk = walker.walk(3, 5, 5000)
    while not walk.is_done:
        walk.go_on()
    assert late.draw(5, weights) == tokens[5]


def test_a_walk_is_gone_by_another_thread() -> None:
    walker = Walker()
    walk = walker.walk(3, 100, QWEN)
    assert not walk.is_done
    deadline = time.monotonic() + 30
    while not walk.is_done and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert torch.equal(walk.state(), drawn(3, 100, QWEN))


def test_walks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_stream, "MOST_WALKS", 3)
    walker = Walker()
    monkeypatch.setattr(walker, "_start", lambda: None)
    for seed in range(10):
        walker.walk(seed, 1000, QWEN)
    assert [key[0] for key in walker._walks] == [7, 8, 9]


@pytest.mark.parametrize("seed", [None, 7])
def test_a_replay_of_thousands_of_tokens_does_not_hold_a_step_up(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = 4000
    sampling = Sampling(max_tokens=5000, temperature=1.0, seed=seed)
    walker = Walker()
    monkeypatch.setattr(walker, "_start", lambda: None)
    begun = time.thread_time()
    sampler = Sampler(sampling, [1] * (generated + 1), generated, walker=walker)
    if seed is None:
        sampler.next(generated + 1, torch.zeros(QWEN))
    else:
        with pytest.raises(NoRoom):
            sampler.next(generated + 1, torch.zeros(QWEN))
    assert time.thread_time() - begun < 0.5  # 4,000 draws of so many ids take 18 s
