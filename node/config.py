"""NodeConfig: every choice of the person who starts a node, made once from the command line."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.row_forms import AUTO, FORMS
from swarm.errors import BadInput
from swarm.hardware import WIDEST, WIDTHS, bytes_of
from swarm.model import BUILT_IN

EVERY_ADDRESS = "0.0.0.0"
QUANTS = ("", "int8")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
KERNELS = Path(__file__).parent / "engine"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node was asked to be."""

    founds: bool  # start a new swarm
    invite: str = ""  # else: join this one ("" = the last one)
    model: str = BUILT_IN
    swarm: str = "swarm"
    key: str = ""  # of a private swarm
    memory_bytes: int = 0  # declared limit per device; 0 = what is free
    sessions_bytes: int = 0  # per device for KV besides that; plans know nothing of it
    slowdown: float = 1.0  # emulated: every step takes so many times as long
    threads: int = 1
    quant: str = ""  # of the layers' weights: "" or "int8"
    dtype: str = AUTO  # of weights, KV and hidden rows
    activations: str = AUTO  # in which form hidden rows go to other machines
    sessions_per_step: int = 0  # most sessions in one step; 0 = as many as wait
    name: str = ""
    listen: str = EVERY_ADDRESS
    port: int = 0
    announce: tuple[str, ...] = ()
    state: Path = Path()

    def __post_init__(self) -> None:
        if not 1 <= self.slowdown <= 1000:
            raise BadInput(
                f"--slowdown {self.slowdown} is out of range.", "Give a number from 1 to 1000."
            )
        if self.threads < 1:
            raise BadInput(f"--threads {self.threads} is out of range.", "Give 1 or more.")
        if self.quant not in QUANTS:
            raise BadInput(f"--quant {self.quant} is not known.", "Give int8, or leave it out.")
        if self.dtype not in (AUTO, *WIDTHS):
            raise BadInput(f"--dtype {self.dtype} is not known.", "Give auto, f32, f16 or bf16.")
        if self.quant and self.dtype not in (AUTO, WIDEST):
            raise BadInput(
                f"--quant {self.quant} computes in f32, not in {self.dtype}.",
                "Leave --quant or --dtype out.",
            )
        if self.activations not in FORMS:
            raise BadInput(
                f"--activations {self.activations} is not known.", "Give auto, full or int8."
            )
        if self.sessions_per_step < 0:
            raise BadInput("--sessions-per-step is negative.", "Give 1 or more, or 0 for all.")
        if not 0 <= self.port < 65536:
            raise BadInput(f"--port {self.port} is out of range.", "Give a port from 1 to 65535.")


def default_state() -> Path:
    """Where nodes and clients keep their keys and the last invite."""
    if chosen := os.environ.get("SWARM_STATE"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "swarm"


def worker_environment() -> dict[str, str]:
    """What a worker is started with: weights are read in one sweep, so huge pages pay.

    Compiled kernels are kept beside their source; where that cannot be written, with the keys.
    """
    kept = {}
    if not os.access(KERNELS, os.W_OK):
        kept["NUMBA_CACHE_DIR"] = str(default_state() / "kernels")
    return HUGE_PAGES | kept | os.environ


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m swarm.node`."""
    made = argparse.ArgumentParser(
        prog="python -m swarm.node", description="Share this machine's devices with a swarm."
    )
    role = made.add_mutually_exclusive_group(required=True)
    role.add_argument("--host", action="store_true", help="start a new swarm, print its invite")
    role.add_argument(
        *("--join",), nargs="?", const="", metavar="INVITE", help="join a swarm (or the last one)"
    )
    made.add_argument("--model", default=BUILT_IN, help="built-in name, folder or hub id")
    made.add_argument("--swarm", default="swarm", metavar="NAME", help="name of a new swarm")
    made.add_argument("--key", default="", help="secret of a private swarm (with --host)")
    made.add_argument("--memory", metavar="SIZE", help="most memory for weights and KV, like 2GB")
    made.add_argument("--sessions-memory", metavar="SIZE", help=argparse.SUPPRESS)
    made.add_argument("--slowdown", type=float, default=1.0, help="emulate a slower device")
    made.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    made.add_argument("--quant", default="", metavar="int8", help="hold weights as 8 bit integers")
    made.add_argument(
        "--dtype",
        default=AUTO,
        help="of weights, KV and rows: f32, f16, bf16, or auto: bf16 on GPUs that have it",
    )
    made.add_argument(
        "--activations",
        default=AUTO,
        metavar="FORM",
        help="rows to other machines: full, int8, or auto: int8 on slow links",
    )
    made.add_argument("--sessions-per-step", type=int, default=0, help=argparse.SUPPRESS)
    made.add_argument("--name", default="", help="what others see, besides the peer id")
    made.add_argument("--listen", default=EVERY_ADDRESS, metavar="ADDRESS")
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--announce", action="append", default=[], metavar="MULTIADDR")
    made.add_argument("--state", type=Path, metavar="FOLDER", help="keys, terms, last invite")
    return made


def read_config(arguments: Sequence[str]) -> NodeConfig:
    """The config of a command line; raises BadInput, or SystemExit(2) from argparse."""
    given = parser().parse_args(arguments)
    return NodeConfig(
        founds=given.host,
        invite=given.join or os.environ.get("SWARM_INVITE", ""),
        model=given.model,
        swarm=given.swarm,
        key=given.key,
        memory_bytes=_memory_of(given.memory),
        sessions_bytes=_memory_of(given.sessions_memory),
        slowdown=given.slowdown,
        threads=given.threads,
        quant=given.quant,
        dtype=given.dtype,
        activations=given.activations,
        sessions_per_step=given.sessions_per_step,
        name=given.name,
        listen=given.listen,
        port=given.port,
        announce=tuple(given.announce),
        state=given.state or default_state(),
    )


def _memory_of(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return bytes_of(text)
    except ValueError as error:
        raise BadInput(f"--memory: {error}.", "Write it like 2GB or 512MiB.") from error
