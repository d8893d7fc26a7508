"""No session goes beyond the context, where a model crashes or computes otherwise for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine.shard_io import StepItem
from node.engine.stage_runner import StageRunner
from swarm.errors import EngineError

FROM_GPT2 = {
    **dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    ),
    **{"intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4},
    **{"n_head": 8, "n_inner": 1000, "n_positions": 128},
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0],
    "long_factor": [4.0, 4.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 128,
}
DYNAMIC = {
    "rope_type": "dynamic",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("gpt2", FROM_GPT2),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128}),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 128}),
    ],
)
def test_a_session_ends_where_the_models_positions_end(
    architecture: str,
    options: dict[str, Any],
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, options)
    runner: StageRunner = stage(tmp_path, (0, 4))[0]
    assert runner.context == 128
    with pytest.raises(EngineError, match="context is 128 tokens"):
        runner.open("stranger", capacity=129)
    runner.open("honest", capacity=128, history=[5] * 128)
    (result,) = runner.step([StepItem("honest", 0, torch.tensor([5] * 128), sample=True)])
    assert result.ids
    (beyond,) = runner.step([StepItem("honest", 128, torch.tensor([5]), sample=True)])
    assert beyond.error is not None
