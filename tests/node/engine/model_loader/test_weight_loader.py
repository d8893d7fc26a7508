"""A shard asks for just the bytes that it is made of, and loads the same from a sparse copy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine.model_loader.load_shard import WeightSources
from node.engine.model_loader.weight_loader import ranges_of
from node.engine.parallel.allreduce import LocalReducer
from node.engine.parallel.tensor_parallel import Cut
from node.engine.shard_io import StageSpec
from node.engine.stage_runner import StageRunner
from swarm.checkpoint.byte_ranges import ByteRanges, size_of
from swarm.checkpoint.safetensors_headers import (
    PREFIX_BYTES,
    TensorHeader,
    header_end,
    weight_files,
)
from swarm.checkpoint.sparse_file import FileFacts, SparseFile
from swarm.errors import BadModel

WHOLE = (0, 8)


def sparse_copy(whole: Path, folder: Path) -> Path:
    """The same checkpoint with headers but without weights."""
    folder.mkdir()
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    for path in weight_files(whole):
        data = path.read_bytes()
        sparse = SparseFile(folder / path.name, FileFacts(len(data), "tag"))
        end = header_end(data[:PREFIX_BYTES], path.name)
        sparse.write(0, data[:end])
        sparse.note(((0, end),))
    return folder


class Giver:
    """Copies wanted ranges from the whole checkpoint, and counts them."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self._whole, self._folder = whole, folder
        self.bytes = 0

    def __call__(self, wanted: Mapping[str, ByteRanges]) -> None:
        for name, ranges in wanted.items():
            sparse = SparseFile.again(self._folder / name)
            if sparse is None:
                continue
            ranges = sparse.missing(ranges)
            data = (self._whole / name).read_bytes()
            for start, end in ranges:
                sparse.write(start, data[start:end])
            sparse.note(ranges)
            self.bytes += size_of(ranges)


def parameters_of(runner: StageRunner) -> dict[str, torch.Tensor]:
    found = runner._stage.model.named_parameters()
    return {name: each.to_dense() if each.is_mkldnn else each for name, each in found}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {"num_key_value_heads": None, "num_attention_heads": 8}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
@pytest.mark.parametrize(
    "cutting",  # layers, rank, bounds of KV heads and of MLP blocks
    [
        ((1, 3), 0, WHOLE, WHOLE),
        ((0, 4), 1, (0, 3, 8), (0, 5, 8)),
        ((2, 4), 0, (0, 5, 8), (0, 5, 8)),
    ],
)
def test_a_shard_from_a_sparse_copy_is_the_same_and_little_more_is_fetched(
    architecture: str,
    options: dict[str, Any],
    cutting: tuple[tuple[int, int], int, tuple[int, ...], tuple[int, ...]],
    tmp_path: Path,
    save: Callable[..., Any],
) -> None:
    layers, rank, kv, mlp = cutting
    save(tmp_path / "whole", architecture, options)
    thin = sparse_copy(tmp_path / "whole", tmp_path / "thin")
    give = Giver(tmp_path / "whole", thin)
    runners = []
    for folder in (tmp_path / "whole", thin):
        spec = StageSpec(folder, *layers, rank, kv, mlp)
        reducer = LocalReducer.group(spec.ranks)[rank] if spec.ranks > 1 else None
        loaded = StageRunner.load(
            spec, budget_bytes=1 << 26, reducer=reducer, sources=WeightSources(give)
        )
        runners.append(loaded)
    whole, sparse = map(parameters_of, runners)
    assert whole.keys() == sparse.keys()
    assert all(torch.equal(whole[name], sparse[name]) for name in whole)
    assert runners[0].bytes_read == runners[1].bytes_read <= give.bytes
    if spec.ranks == 1:
        assert give.bytes <= 1.01 * runners[1].bytes_read


def test_without_anybody_who_gives_a_sparse_copy_is_refused(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path / "whole", "llama", {})
    thin = sparse_copy(tmp_path / "whole", tmp_path / "thin")
    spec = StageSpec(thin, 0, 2, 0, WHOLE, WHOLE)
    with pytest.raises(BadModel, match="lacks bytes of this shard"):
        StageRunner.load(spec, budget_bytes=1 << 26)
    with pytest.raises(BadModel, match="lacks bytes of this shard"):
        StageRunner.load(spec, budget_bytes=1 << 26, sources=WeightSources(lambda wanted: None))


def header(*shape: int) -> TensorHeader:
    size = 4 * torch.Size(shape).numel()
    return TensorHeader("name", Path("file"), "F32", shape, 1000, 1000 + size)


def test_rows_are_fetched_apart_and_columns_with_what_lies_between() -> None:
    rows = Cut(0, 100, 1, ((10, 30), (60, 80)))
    assert ranges_of(header(100, 8), rows) == [(1320, 1960), (2920, 3560)]
    assert ranges_of(header(8, 100), Cut(1, 100, 1, ((10, 30),))) == [(1000, 4200)]
    assert ranges_of(header(8, 100), None) == [(1000, 4200)]


def test_rows_of_large_experts_are_fetched_apart() -> None:
    size = 4 * 1000 * 1000
    found = ranges_of(header(3, 1000, 1000), Cut(1, 1000, 1, ((0, 250),)))
    assert found == [(1000 + i * size, 1000 + i * size + size // 4) for i in range(3)]
