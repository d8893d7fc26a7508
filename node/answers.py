"""Answers of a worker that need no shard: how fast its device is, how long an order waited, no."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from node.engine.measure import measure
from node.engine.quantise import bytes_per_weight
from node.orders import Compute, Computed, Failed, Measure, Measured, Reserve, Reserved
from swarm.hardware import WIDTHS
from swarm.model import ModelSpec
from swarm.wire import Message


def measured(order: Measure, device: str, slowdown: float) -> Measured:
    """Measure a device on the shapes of a model; takes seconds; raises SwarmError."""
    model, threads = ModelSpec(**order.model), torch.get_num_threads()
    speeds = measure(model, threads=threads, dtype=order.dtype, quant=order.quant, device=device)
    width = float(WIDTHS[order.dtype])
    if order.quant:
        width = bytes_per_weight(Path(order.folder), order.quant)
    return Measured(speeds[0] / slowdown, speeds[1] / slowdown, width)


def with_queue(answer: Message, start: float, came: dict[str, float]) -> Message:
    """The answer with the time that its order waited before `start`, by when sessions' came."""
    if not isinstance(answer, Computed):
        return answer
    return replace(answer, queue_us=max(0, int((start - came[answer.session]) * 1e6)))


def refusals(batch: Iterable[Message]) -> list[Message]:
    """What orders of a shard that is not loaded are told."""
    why = "stage_lost", "The shard is not loaded."
    refused: list[Message] = []
    for order in batch:
        if isinstance(order, Compute):
            refused.append(Failed(order.session, *why))
        elif isinstance(order, Reserve):
            refused.append(Reserved(order.session, 0, *why))
    return refused
