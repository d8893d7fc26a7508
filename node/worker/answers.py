"""Answers of a worker that need no shard: what a model is, how fast a device, how long it took."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from node.engine.throughput import bytes_per_weight, measure
from node.worker.messages import (
    CODEC,
    Broken,
    Compute,
    Computed,
    Describe,
    Described,
    Failed,
    Measure,
    Measured,
    Reserve,
    Reserved,
)
from swarm.errors import BadModel, LocalProtocolError
from swarm.hardware import WIDTHS
from swarm.model_spec import ModelSpec
from swarm.wire.messages import TEXT_CAP, Message
from swarm.wire.rules import FailCode

logger = logging.getLogger(__name__)


def described(order: Describe) -> Described:
    """Read what is in a folder of a model; takes seconds where it is new."""
    from swarm.checkpoint.expected_tensors import read_complete_spec  # transformers: seconds

    try:
        return Described(read_complete_spec(Path(order.folder), order.name).to_json())
    except BadModel as error:
        return Described({}, error.cause, error.next_step)


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


def frame_of(answer: Message) -> list[bytes | memoryview]:
    """An answer as it travels; one that cannot travel fails its own session, or group."""
    try:
        return CODEC.encode(answer)
    except LocalProtocolError:  # an island: a bug of ours, or a path that is no UTF-8
        logger.exception("a %s does not travel", type(answer).__name__)
        return CODEC.encode(_in_place_of(answer))


def _in_place_of(answer: Message) -> Message:
    why = FailCode.INTERNAL, "The answer does not travel; the log of the node says why."
    match answer:
        case Computed() | Failed():
            return Failed(answer.session, *why)
        case Reserved():
            return Reserved(answer.session, 0, *why)
    return Broken(getattr(answer, "group", ""), ascii(getattr(answer, "reason", why[1]))[:TEXT_CAP])


def refusals(batch: Iterable[Message]) -> list[Message]:
    """What orders of a shard that is not loaded are told."""
    why = FailCode.STAGE_LOST, "The shard is not loaded."
    refused: list[Message] = []
    for order in batch:
        if isinstance(order, Compute):
            refused.append(Failed(order.session, *why))
        elif isinstance(order, Reserve):
            refused.append(Reserved(order.session, 0, *why))
    return refused
