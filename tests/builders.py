"""Builders: what tests of several rooms make, once each."""

import asyncio
from pathlib import Path

from swarm.checkpoint.expected_tensors import read_complete_spec
from swarm.model_spec import ModelSpec


async def describe(folder: Path, name: str) -> ModelSpec:
    """The dimensions of a model, read in this process as a worker reads them for its node."""
    return await asyncio.to_thread(read_complete_spec, folder, name)
