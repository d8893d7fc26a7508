"""Every device of this machine with a measured worker process, held open."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from node.config import NodeConfig
from node.probe import Detected, chosen_dtype, detect
from node.served_model import ServedModel
from node.worker.messages import Measure, Measured
from node.worker.worker_handle import WorkerPlace, WorkerProcess
from swarm.errors import BadInput
from swarm.hardware import Device
from swarm.wire.messages import Message

OnAnswer = Callable[[int, Message], None]


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """A device with its worker."""

    device: Device
    worker: WorkerProcess


def detected_devices(config: NodeConfig) -> tuple[list[Detected], list[str]]:
    """The devices of this machine, and what each computes in; raises BadInput."""
    detected = detect(config.memory_bytes, config.memory_share)
    if config.quant and any(found.kind != "cpu" for found in detected):
        raise BadInput(f"--quant {config.quant} runs on CPUs only.", "Leave it out here.")
    return detected, [chosen_dtype(found, config.dtype, config.quant) for found in detected]


@asynccontextmanager
async def open_devices(
    config: NodeConfig, served: ServedModel, on_answer: OnAnswer
) -> AsyncIterator[list[MeasuredDevice]]:
    """Hold a measured worker for every device of this machine; raises BadInput, BadModel."""
    detected, dtypes = detected_devices(config)
    async with AsyncExitStack() as stack:
        workers = [await _open_worker(config, found, on_answer, stack) for found in detected]
        model = served.spec.to_json()
        measured = await asyncio.gather(
            *(
                worker.measure(Measure(model, dtype, config.quant, str(served.folder)))
                for worker, dtype in zip(workers, dtypes, strict=True)
            )
        )
        yield [
            MeasuredDevice(_device_of(found, dtype, speed), worker)
            for found, dtype, speed, worker in zip(detected, dtypes, measured, workers, strict=True)
        ]


async def _open_worker(
    config: NodeConfig, found: Detected, on_answer: OnAnswer, stack: AsyncExitStack
) -> WorkerProcess:
    place = WorkerPlace(found.torch_name, config.threads, config.slowdown, config.sessions_per_step)
    worker = await WorkerProcess.spawn(place, lambda answer: on_answer(found.index, answer))
    stack.push_async_callback(worker.close)
    return worker


def _device_of(found: Detected, dtype: str, speed: Measured) -> Device:
    return Device(
        index=found.index,
        kind=found.kind,
        name=found.name,
        memory_bytes=found.memory_bytes,
        bytes_per_second=speed.bytes_per_second,
        flops=speed.flops,
        weight_bytes=speed.weight_bytes,
        dtype=dtype,
    )
