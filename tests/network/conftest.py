"""Two hosts, each with a node, and a model that the test process computes whole."""

from collections.abc import Generator, Iterator
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.network.laboratory import Laboratory
from tests.network.namespaces import NoLaboratory
from tests.whole.reference_model import TINY
from tests.whole.swarms import Nodes, nodes_in

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, object, object]:
    """Skip what needs more than the networks that can be had here."""
    return (yield from _skipped_without_laboratory())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Skip what needs more than the networks that can be had here."""
    return (yield from _skipped_without_laboratory())


def _skipped_without_laboratory() -> Generator[None, object, object]:
    try:
        return (yield)
    except NoLaboratory as error:
        pytest.skip(f"no laboratory of hosts: {error}")


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    """A laboratory; it takes everything down when the test ends."""
    with Laboratory() as lab:
        yield lab


@pytest.fixture
def nodes(lab: Laboratory, tmp_path: Path) -> Iterator[Nodes]:
    """The nodes of a test; they end before the networks do."""
    with nodes_in(tmp_path) as nodes:
        yield nodes


def model_of(folder: Path, layers: int) -> Path:
    """A random Llama with the tokenizer of swarm-tiny; its layers outweigh its embedding."""
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1024,
        vocab_size=512,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
    )
    torch.manual_seed(layers)
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        copy(TINY / name, folder / name)
    return folder
