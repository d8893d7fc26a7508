"""What this machine offers: detected, never guessed."""

import hashlib
import platform
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from node.config import AUTO
from node.worker.gpu_report import read_gpus
from swarm.errors import BadInput
from swarm.formatting import bytes_text
from swarm.hardware import WIDEST, Device

USABLE_SHARES = {"cpu": 0.8, "cuda": 0.92}  # of the memory that is free now
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")  # NVIDIA, Tegra, AMD, WSL


@dataclass(frozen=True, slots=True)
class Detected:
    """A device before it is measured."""

    index: int
    kind: str  # "cpu" or "cuda"
    torch_name: str  # "cpu", "cuda:0"
    name: str
    free_bytes: int
    total_bytes: int
    memory_bytes: int  # that it may use
    dtypes: tuple[str, ...]  # what it computes in, the best first; float32 always


def chosen_dtype(found: Detected, wish: str, quant: str) -> str:
    """What a device computes in; raises BadInput if it cannot do what is wished."""
    if quant:
        return WIDEST  # activations of int8 linears
    if wish == AUTO:
        return found.dtypes[0]
    if wish not in found.dtypes:
        raise BadInput(
            f"--dtype {wish} does not run on {found.torch_name}, {found.name}.",
            f"Give {' or '.join(found.dtypes)}, or leave it out.",
        )
    return wish


def detect(limit_bytes: int = 0, share: float = 0.0) -> list[Detected]:
    """The CUDA devices of this machine, or its CPU; memory within the declared limit, if any.

    Raises BadInput if no device has as much memory as declared.
    """
    found = (_gpus() if _may_have_gpus() else []) or [_cpu()]
    most = max(device.total_bytes for device in found)
    if limit_bytes > most:
        raise BadInput(
            f"--memory {bytes_text(limit_bytes)} is more than this machine's {bytes_text(most)}.",
            "Give less, or leave it out.",
        )
    return [replace(d, memory_bytes=_usable(d, limit_bytes, share)) for d in found]


def _usable(device: Detected, limit_bytes: int, share: float) -> int:
    usable = int(device.free_bytes * (share or USABLE_SHARES[device.kind]))
    return min(limit_bytes, usable) if limit_bytes else usable


def memory_words(device: Device, limit_bytes: int, share: float) -> str:
    """Why a device offers so much memory, where that is not simply what was declared."""
    if device.memory_bytes == limit_bytes:
        return ""
    words = f"{share or USABLE_SHARES[device.kind]:.0%} of what is free"
    return f"{words}, not {bytes_text(limit_bytes)}" if limit_bytes else words


def machine_id() -> str:
    """Equal for all peers of one machine, and says nothing else about it."""
    try:
        seed = Path("/etc/machine-id").read_text().strip()
    except OSError:
        seed = ""
    seed += socket.gethostname() + str(psutil.boot_time())
    return hashlib.sha256(seed.encode()).hexdigest()[:12]


def _may_have_gpus() -> bool:
    """Whether it is worth asking torch, which takes seconds to load: a driver shows itself."""
    return sys.platform != "linux" or any(Path(each).exists() for each in GPU_DRIVERS)


def _gpus() -> list[Detected]:
    return [
        Detected(
            index=gpu.index,
            kind="cuda",
            torch_name=f"cuda:{gpu.index}",
            name=gpu.name,
            free_bytes=gpu.free_bytes,
            total_bytes=gpu.total_bytes,
            memory_bytes=gpu.free_bytes,
            dtypes=gpu.dtypes,
        )
        for gpu in read_gpus()
    ]


def _cpu() -> Detected:
    memory = psutil.virtual_memory()
    free, total, dtypes = memory.available, memory.total, (WIDEST, "bf16", "f16")
    name = f"{platform.machine()} CPU, {psutil.cpu_count(logical=False) or 1} cores"
    return Detected(0, "cpu", "cpu", name, free, total, free, dtypes)
