"""A CPU worker's transformers: every model that we support, and nothing that trains or compiles."""

import json
import subprocess
import sys

from swarm.checkpoint.architectures import SUPPORTED_ARCHITECTURES

WORKER = """
import json, sys
from node.worker import compute_loop
from node.engine.lean_transformers import import_lean
early = set(sys.modules)
import_lean()
import node.worker.shard
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as MODELS
models = [MODELS[type(AutoConfig.for_model(name))].__name__ for name in sys.argv[1:]]
unused = ("torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "sympy")
loaded = [name for name in unused if name in sys.modules]
import torch._dynamo, scipy
from transformers.utils import is_scipy_available, is_torch_distributed_available
after = [torch._dynamo.disable(len)("abc"), is_scipy_available(), is_torch_distributed_available()]
print(json.dumps(["transformers" in early, models, loaded, after]))
"""


UPGRADED = """
import sys
from node.engine import lean_transformers
lean_transformers.MARKS = ("disable",)  # this transformers uses more of them
lean_transformers.import_lean()
import node.worker.shard
from pathlib import Path
from node.engine.stage_model import build_stage_model
from swarm.checkpoint.folder import find_model, load_config
import torch
config = load_config(find_model("swarm-tiny"))
stage = build_stage_model(config, range(2), torch.float32, has_head=False)
print(len(stage.owned), sys.modules["torch._dynamo"].disable(len)("abc"))
"""


def test_a_transformers_that_asks_for_more_costs_time_and_no_worker() -> None:
    found = subprocess.run(
        [sys.executable, "-c", UPGRADED], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert "cannot be imported without a compiler" in found.stderr
    assert found.stdout.split() == ["2", "3"]


def test_a_cpu_worker_loads_every_model_and_neither_dynamo_nor_what_comes_with_it() -> None:
    """It fails where a new transformers asks for more of dynamo than our marks: see the file."""
    found = subprocess.run(
        [sys.executable, "-c", WORKER, *SUPPORTED_ARCHITECTURES],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    is_early, models, loaded, after = json.loads(found.stdout.splitlines()[-1])
    assert not is_early  # a worker measures its device before it loads models
    assert len(models) == len(SUPPORTED_ARCHITECTURES)
    assert loaded == []
    assert after == [3, True, True]  # the real ones, for whoever asks later
