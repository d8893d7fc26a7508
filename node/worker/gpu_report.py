"""GPU report: what torch says of this machine's GPUs, asked in a process that ends at once.

Who asks CUDA for free memory has a context on every GPU from then on, hundreds of megabytes that no
model can use. A node lives for weeks, and computes nothing itself.
"""

import json
import logging
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from node.config import worker_environment
from swarm.commands.package_finder import command_of
from swarm.formatting import printable
from swarm.hardware import WIDEST

ASK_SECONDS = 120.0  # torch and a sleeping driver load in seconds, in a minute from slow disks
BF16_SINCE = (8, 0)  # compute capability
LONGEST_CAUSE = 300  # characters of what the process said

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU, now."""

    index: int
    name: str
    free_bytes: int
    total_bytes: int
    dtypes: tuple[str, ...]  # what it computes in, the best first; float32 always


def read_gpus() -> list[GpuReport]:
    """Ask for the GPUs now; none where they cannot be asked, which is logged."""
    try:
        done = subprocess.run(
            command_of(__name__),
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
            check=True,
        )
        return [_report_of(each) for each in json.loads(_last_line(done.stdout))]
    except subprocess.CalledProcessError as error:
        cause = _last_line(error.stderr) or f"it ended with code {error.returncode}"
    except (subprocess.TimeoutExpired, OSError, ValueError, TypeError) as error:
        cause = str(error)
    logger.warning("the GPUs of this machine are left out: %s", printable(cause, LONGEST_CAUSE))
    return []


def _report_of(values: dict[str, Any]) -> GpuReport:
    return GpuReport(**values | {"dtypes": tuple(values["dtypes"])})


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def report_gpus() -> list[GpuReport]:
    """What torch says of every GPU: this process holds a context on each from now on."""
    import torch  # seconds, and only in this process

    return [_reported(torch, index) for index in range(torch.cuda.device_count())]


def _reported(torch: Any, index: int) -> GpuReport:
    free, total = torch.cuda.mem_get_info(index)
    return GpuReport(index, torch.cuda.get_device_name(index), free, total, _dtypes(torch, index))


def _dtypes(torch: Any, index: int) -> tuple[str, ...]:
    """Older GPUs emulate bfloat16, slowly, and torch calls it supported; float16 they multiply."""
    has_bf16 = torch.version.hip or torch.cuda.get_device_capability(index) >= BF16_SINCE
    return ("bf16", "f16", WIDEST) if has_bf16 else ("f16", WIDEST)


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(each) for each in report_gpus()]) + "\n")
