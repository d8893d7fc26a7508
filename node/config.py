"""NodeConfig: every choice of the person who starts a node, made once from the command line."""

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.commands.command_line import Parser, duration_of
from swarm.errors import BadInput
from swarm.hardware import WIDEST, WIDTHS, bytes_of
from swarm.model_spec import BUILT_IN
from swarm.p2p.addresses import (
    EVERY_ADDRESS,
    FORM,
    is_private,
    listening_host,
    multiaddr_of,
    port_of,
)
from swarm.state_folder import read_secret, state_folder
from swarm.trust.identity import public_key_of
from swarm.trust.peer_lists import ALLOW_FILE, BAN_FILE, peer_id

PROGRAM = "python -m swarm.node"
KEY_BYTES = 24  # of a secret that is made: beyond every word list
QUANTS = ("", "int8")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
SIZE_FORM = "Write it like 8GB, 512MiB or 50%."
AUTO, FULL, INT8 = FORMS = ("auto", "full", "int8")  # of hidden rows on their way
KERNELS = Path(__file__).parent / "engine" / "kernels"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node was asked to be."""

    founds: bool  # start a new swarm
    invite: str = ""  # else: join this one ("" = the last one)
    model: str = BUILT_IN
    served_name: str = ""  # what others call the model; "" = its own name
    swarm: str = "swarm"
    key: str = ""  # of a private swarm
    memory_bytes: int = 0  # declared limit per device; 0 = none
    memory_share: float = 0.0  # of a device's free memory; 0 = the usual share
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
    relays: tuple[str, ...] = ()  # multiaddrs with /p2p/<id> of whom to be reached through
    trusted: tuple[str, ...] = ()  # peers that may plan as soon as they ask
    banned: tuple[str, ...] = ()  # peers that we do not speak with
    allowed: tuple[str, ...] = ()  # if there are any: the only ones that we speak with
    state: Path = Path()
    pause_while: str = ""  # a shell command; while it succeeds the node pauses
    idle_seconds: float = 0.0  # that nobody has been at work here before the node runs; 0 = runs

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
        if not 0 <= self.memory_share <= 1:
            raise BadInput(f"--memory {self.memory_share:.0%} is out of range.", SIZE_FORM)
        if not 0 <= self.port < 65536:
            raise BadInput(f"--port {self.port} is out of range.", "Give a port from 1 to 65535.")


def worker_environment() -> dict[str, str]:
    """What a worker is started with: weights are read in one sweep, so huge pages pay.

    Compiled kernels are kept beside their source; where that cannot be written, with the keys.
    """
    kept = {}
    if not os.access(KERNELS, os.W_OK):
        kept["NUMBA_CACHE_DIR"] = str(state_folder(os.environ) / "kernels")
    return HUGE_PAGES | kept | os.environ


def parser(program: str = PROGRAM) -> Parser:
    """The command line of a node."""
    made = Parser(prog=program, description="Share this machine's devices with a swarm.")
    _add_swarm(made)
    _add_devices(made)
    _add_network(made)
    _add_pauses(made)
    made.add_argument("--state", type=Path, metavar="FOLDER", help="keys, terms, last invite")
    return made


def _add_swarm(made: Parser) -> None:
    """Which swarm, and what it serves."""
    role = made.add_mutually_exclusive_group(required=True)
    role.add_argument("--host", action="store_true", help="start a new swarm, print its invite")
    role.add_argument(
        *("--join",), nargs="?", const="", metavar="INVITE", help="join a swarm (or the last one)"
    )
    made.add_argument("--model", default=BUILT_IN, help="built-in name, folder or hub id")
    made.add_argument(
        *("--served-model-name",),
        default="",
        metavar="NAME",
        help="what the swarm calls the model (default: the hub id, or the folder's last name)",
    )
    made.add_argument("--swarm", default="swarm", metavar="NAME", help="name of a new swarm")
    made.add_argument(
        *("--key",),
        nargs="?",
        const="",
        metavar="SECRET",
        help="found a private swarm with this secret; better: none, and a strong one is made",
    )
    made.add_argument(
        *("--key-file",), metavar="FILE", help="read the secret from there, else from $SWARM_KEY"
    )


def _add_devices(made: Parser) -> None:
    """What this machine gives."""
    made.add_argument(
        *("--memory",),
        metavar="SIZE",
        help="most memory of each device for weights and KV cache: 8GB, 512MiB or 50%% of what is"
        " free (default: 80%% of free memory, 92%% on GPUs)",
    )
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


def _add_network(made: Parser) -> None:
    """Under which name and address others find this node, and whom it trusts."""
    made.add_argument("--name", default="", help="what others see, besides the peer id")
    made.add_argument(
        *("--listen",),
        default=EVERY_ADDRESS,
        metavar="ADDRESS",
        help="address of this machine to listen on, IPv4 or IPv6 (default: all of them)",
    )
    made.add_argument(
        "--port",
        type=int,
        default=0,
        help="default: the one of the last time, or that is announced, or a free one",
    )
    made.add_argument(
        *("--announce",),
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where others reach this node, if it cannot see that itself, such as the router's"
        " address with a port that it forwards; a multiaddr will do too",
    )
    made.add_argument(
        *("--relay",),
        action="append",
        default=[],
        metavar="ADDRESS",
        help="be reached through this peer, as `swarm relay --alone` prints it: for who starts a"
        " swarm behind a router; who joins one finds relays by itself",
    )
    made.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PEER",
        help="certify this peer as a planner when it asks, without having seen it serve",
    )
    _add_lists(made)


def _add_pauses(made: Parser) -> None:
    """When this machine's devices are not for others (besides `swarm pause`, and SIGUSR1)."""
    made.add_argument(
        "--pause-while",
        default="",
        metavar="COMMAND",
        help="pause while this shell command, run every few seconds, succeeds: 'pgrep -x game'",
    )
    made.add_argument(
        *("--only-when-idle",),
        type=duration_of,
        default=0.0,
        metavar="TIME",
        help="run only when nobody has used keyboard or mouse for so long, like 10m: by terminals"
        " and by the desktop's idle hint (Linux)",
    )


def _add_lists(made: Parser) -> None:
    """With whom this node speaks."""
    made.add_argument(
        "--ban",
        action="append",
        default=[],
        metavar="PEER",
        help="have nothing to do with this peer; more may stand in the state folder's file"
        f" {BAN_FILE}, one a line, which is read again when it changes",
    )
    made.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PEER",
        help=f"have to do with this peer, and with no others but those named so or in {ALLOW_FILE}",
    )


def read_config(arguments: Sequence[str], program: str = PROGRAM) -> NodeConfig:
    """The config of a command line; raises BadInput."""
    given = parser(program).parse_args(arguments)
    announced = tuple(announced_at(text) for text in given.announce)
    memory_bytes, share = _memory_of("--memory", given.memory)
    return NodeConfig(
        founds=given.host,
        invite=given.join or os.environ.get("SWARM_INVITE", ""),
        model=given.model,
        served_name=given.served_model_name,
        swarm=given.swarm,
        key=_key_of(given) if given.host else "",
        memory_bytes=memory_bytes,
        memory_share=share,
        sessions_bytes=_memory_of("--sessions-memory", given.sessions_memory)[0],
        slowdown=given.slowdown,
        threads=given.threads,
        quant=given.quant,
        dtype=given.dtype,
        activations=given.activations,
        sessions_per_step=given.sessions_per_step,
        name=given.name,
        listen=listened_at(given.listen),
        port=given.port or (port_of(announced[0]) if announced else 0),
        announce=announced,
        relays=tuple(relay_at(text) for text in given.relay),
        trusted=tuple(peer_id(peer, "--trust ") for peer in given.trust),
        banned=tuple(peer_id(peer, "--ban ") for peer in given.ban),
        allowed=tuple(peer_id(peer, "--allow ") for peer in given.allow),
        state=given.state or state_folder(os.environ),
        pause_while=given.pause_while,
        idle_seconds=given.only_when_idle,
    )


def _key_of(given: argparse.Namespace) -> str:
    """The secret of a private swarm, "" for an open one; raises BadInput."""
    if given.key_file:
        return read_secret(given.key_file)
    if given.key is None:
        return os.environ.get("SWARM_KEY", "")
    return given.key or secrets.token_urlsafe(KEY_BYTES)


def _memory_of(flag: str, text: str | None) -> tuple[int, float]:
    """A size in bytes, or a share of what is free; the other is 0; both are if none is given."""
    if text is None:
        return 0, 0.0
    try:
        if text.strip().endswith("%"):
            return 0, _share_of(text)
        return bytes_of(text), 0.0
    except ValueError as error:
        raise BadInput(f"{flag}: {error}.", SIZE_FORM) from error


def _share_of(text: str) -> float:
    share = float(text.strip().removesuffix("%")) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a share of free memory")
    return share


def announced_at(text: str) -> str:
    """The multiaddr that --announce names; raises BadInput."""
    try:
        return multiaddr_of(text)
    except ValueError as error:
        raise BadInput(f"--announce: {error}.", FORM) from error


def relay_at(text: str) -> str:
    """The multiaddr, with its peer id, that --relay names; raises BadInput."""
    where, _, peer = text.strip().partition("/p2p/")
    try:
        public_key_of(peer)
        address = multiaddr_of(where)
        if is_private(address):
            raise ValueError(f"{where} is of a private network, where nobody comes from outside")
    except ValueError as error:
        raise BadInput(
            f"--relay: {error}.",
            "Give the whole address that `swarm relay --alone` prints on a public machine.",
        ) from error
    return f"{address}/p2p/{peer}"


def listened_at(text: str) -> str:
    """The address that --listen names; raises BadInput."""
    try:
        return listening_host(text)
    except ValueError as error:
        raise BadInput(
            f"--listen: {error}.", f"Give an IP address of it, or {EVERY_ADDRESS} for all."
        ) from error
