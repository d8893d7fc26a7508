"""Every device of this machine with a worker process, held open, and measured."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from node.config import NodeConfig
from node.probe import Detected, chosen_dtype, detect
from node.served_model import ServedModel
from node.worker.messages import Measure, Measured
from node.worker.spawned_worker import WorkerPlace
from node.worker.standby_handle import StandbyWorker
from node.worker.worker_handle import WorkerProcess
from swarm.errors import BadInput
from swarm.hardware import Device


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """A device with its worker."""

    device: Device
    worker: WorkerProcess


def detected_devices(config: NodeConfig) -> list[Detected]:
    """The devices of this machine, each able to do what is asked of it; raises BadInput."""
    detected = detect(config.memory_bytes, config.memory_share)
    if config.quant and any(found.kind != "cpu" for found in detected):
        raise BadInput(f"--quant {config.quant} runs on CPUs only.", "Leave it out here.")
    for found in detected:
        chosen_dtype(found, config.dtype, config.quant)
    return detected


@asynccontextmanager
async def open_workers(
    config: NodeConfig, detected: Sequence[Detected], standby: StandbyWorker
) -> AsyncIterator[list[WorkerProcess]]:
    """Hold a worker process for every device; it loads torch while its node joins the swarm."""
    async with AsyncExitStack() as stack:
        yield [await _open_worker(_place_of(config, each), standby, stack) for each in detected]


async def measured_devices(
    config: NodeConfig,
    served: ServedModel,
    detected: Sequence[Detected],
    workers: Sequence[WorkerProcess],
) -> list[MeasuredDevice]:
    """Every device with its worker and its speed; raises BadInput, BadModel, Deadline."""
    model, folder = served.spec.to_json(), str(served.folder)
    dtypes = [chosen_dtype(found, config.dtype, config.quant) for found in detected]
    orders = [Measure(model, dtype, config.quant, folder) for dtype in dtypes]
    pairs = zip(workers, orders, strict=True)
    speeds = await asyncio.gather(*(worker.measure(order) for worker, order in pairs))
    return [
        MeasuredDevice(_device_of(found, dtype, speed), worker)
        for found, dtype, speed, worker in zip(detected, dtypes, speeds, workers, strict=True)
    ]


def _place_of(config: NodeConfig, found: Detected) -> WorkerPlace:
    numbers = config.threads, config.slowdown, config.sessions_per_step
    return WorkerPlace(found.torch_name, *numbers)


async def _open_worker(
    place: WorkerPlace, standby: StandbyWorker, stack: AsyncExitStack
) -> WorkerProcess:
    worker = await WorkerProcess.spawn(place, standby)
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
