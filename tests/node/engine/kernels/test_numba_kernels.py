"""The kernels compute what torch's operations do, whatever sessions a step is made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from node.engine.kernels import numba_kernels
from node.engine.kernels.int8_linear import LEVELS, QuantisedRows
from node.engine.kernels.packed_linear import ZERO
from node.engine.kernels.small_batch import index_rows
from node.engine.kv_cache.arena import KVStore
from node.engine.shard_io import Array

EMPTY = np.empty(0, np.float32)
EPSILON = np.float32(1e-5)


def rows(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("width", [1, 5, 64, 1000])
def test_norm_adds_in_place_and_normalises(width: int) -> None:
    hidden, added, weight = rows(3, width), rows(3, width, seed=1), rows(width, seed=2)
    total, out = hidden + added, torch.empty(3, width)
    numba_kernels.fused_add_rms_norm(
        hidden.numpy(), added.numpy(), weight.numpy(), EPSILON, out.numpy()
    )
    torch.testing.assert_close(hidden, total)
    expected = functional.rms_norm(total, (width,), weight, 1e-5)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-6)
    nothing = np.empty((0, 0), np.float32)
    numba_kernels.fused_add_rms_norm(hidden.numpy(), nothing, weight.numpy(), EPSILON, out.numpy())
    torch.testing.assert_close(hidden, total)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
def test_gate_is_silu_times_up(scale: float) -> None:
    both, out = rows(4, 2 * 37, scale=scale), torch.empty(4, 37)
    numba_kernels.silu_and_mul(both.numpy(), out.numpy())
    expected = functional.silu(both[:, :37].double()) * both[:, 37:].double()
    torch.testing.assert_close(out.double(), expected, rtol=3e-5, atol=1e-25)


def test_nan_is_not_hidden_by_the_gate_or_the_norm() -> None:
    both, out = torch.full((1, 8), torch.nan), torch.zeros(1, 4)
    numba_kernels.silu_and_mul(both.numpy(), out.numpy())
    assert bool(out.isnan().all())
    nothing, weight = np.empty((0, 0), np.float32), np.ones(4, np.float32)
    numba_kernels.fused_add_rms_norm(
        both[:, :4].clone().numpy(), nothing, weight, EPSILON, out.numpy()
    )
    assert bool(out.isnan().all())


@pytest.mark.parametrize("is_packed", [True, False])  # whichever this CPU's products want
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_few_rows_are_rounded_like_many(
    scale: float, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.engine.kernels.int8_linear.can_multiply_integers", lambda: is_packed)
    many = rows(64, 96, scale=scale)
    whole, absmax = QuantisedRows().of(many)
    few, few_absmax = QuantisedRows().of(many[:5].clone())
    assert torch.equal(few_absmax, absmax[:5])
    assert int((few.int() - whole[:5].int()).abs().max()) <= 1  # halves may go either way
    assert few.dtype == whole.dtype == (torch.uint8 if is_packed else torch.int8)
    worth = (few.int() - (ZERO if is_packed else 0)) * few_absmax / LEVELS
    assert float((worth - many[:5]).abs().max()) <= 0.501 * float(absmax.max()) / LEVELS


def attend_alone(
    heads: torch.Tensor, angles: torch.Tensor, norms: tuple[Array, Array], window: int
) -> torch.Tensor:
    """Causal attention over one session's projected rows: [rows, query heads, head dim]."""
    parts = torch.split(heads.transpose(0, 1).double(), [4, 2, 2])
    query, key, value = parts  # [heads, rows, dim] each
    if len(norms[0]):
        width = (heads.shape[-1],)
        query, key = (
            functional.rms_norm(each, width, torch.from_numpy(weight).double(), 1e-5)
            for each, weight in zip((query, key), norms, strict=True)
        )
    rotated = apply_rotary_pos_emb(query[None], key[None], angles.cos()[None], angles.sin()[None])
    query, key = rotated[0][0], rotated[1][0].repeat_interleave(2, 0)
    at = torch.arange(len(heads))
    seen = (at[None] <= at[:, None]) & ((window == 0) | (at[None] > at[:, None] - window))
    scores = (query @ key.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf)
    seen_values: torch.Tensor = scores.softmax(-1) @ value.repeat_interleave(2, 0)
    return seen_values.transpose(0, 1)


@pytest.mark.parametrize("head_dim", [2, 6, 64])
@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("has_norms", [False, True])
@settings(max_examples=10, deadline=None)
@given(
    capacities=st.lists(st.sampled_from([30, 64, 100, 200]), min_size=1, max_size=5),
    steps=st.lists(st.lists(st.integers(0, 7), min_size=5, max_size=5), min_size=1, max_size=6),
)
def test_rows_of_any_sessions_see_their_own_past_only(
    head_dim: int, window: int, has_norms: bool, capacities: list[int], steps: list[list[int]]
) -> None:
    store = KVStore(range(2), 2, (head_dim, head_dim), 2048, torch.empty(0))
    for arena in store.arena.flat(1):
        arena[:] = np.nan  # what nobody wrote must never be read
    tables = [store.manager.open(f"s{n}", capacity) for n, capacity in enumerate(capacities)]
    projected = [rows(60, 8, head_dim, seed=n) for n in range(len(tables))]
    weights = [rows(head_dim, seed=90 + n).numpy() if has_norms else EMPTY for n in range(2)]
    angles = torch.arange(60)[:, None] * torch.linspace(1, 0.01, head_dim // 2).repeat(2)
    done = [0] * len(tables)
    for step in steps:
        counts = [min(count, 30 - at) for count, at in zip(step, done, strict=False)]
        spans = [range(at, at + n) for at, n in zip(done, counts, strict=True)]
        if not any(counts):
            continue
        for table, span in zip(tables, spans, strict=True):
            store.manager.grow(table.session, span.start, span.stop)
        index = index_rows(list(zip(tables, spans, strict=True)))
        where = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        heads = torch.cat(
            [p[span.start : span.stop] for p, span in zip(projected, spans, strict=True)]
        )
        out = torch.empty(len(heads), 4, head_dim)
        cos, sin = angles[where].cos().numpy(), angles[where].sin().numpy()
        numba_kernels.attend_fused(
            heads.clone().numpy(),
            (*index, cos, sin),
            store.arena.flat(1),
            (*weights, EPSILON),
            (2, window, np.float32(0.3)),
            out.numpy(),
        )
        done = [span.stop for span in spans]
        for part, own, span in zip(torch.split(out, counts), projected, spans, strict=True):
            known = attend_alone(
                own[: span.stop], angles[: span.stop].double(), (weights[0], weights[1]), window
            )
            torch.testing.assert_close(part.double(), known[span.start :], rtol=1e-4, atol=1e-5)
