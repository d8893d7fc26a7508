"""Real nodes as processes on this machine: started here, watched here, ended here."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from swarm.invites import Invite
from swarm.model_spec import BYTES_PER_VALUE, PLANNED_TOKENS, ModelSpec
from swarm.trust.machine_state import MachineState
from swarm.trust.tickets import AS_DELEGATE, sell

START_SECONDS = 150.0  # several nodes import torch at once on a busy machine
STOP_SECONDS = 5.0  # what the design allows a node to leave
KILL_SECONDS = 30.0
COMMAND_SECONDS = 120.0
MORE_KV = "6MB"  # per device, beside what plans know of


def shard_bytes(spec: ModelSpec, layers: int, kv: int, mlp: int, *, ends: int = 0) -> int:
    """Memory that holds just such a shard with the KV of one planned session, and no unit more."""
    head = spec.attention_parameters / spec.kv_heads
    head += min(PLANNED_TOKENS, spec.context) * spec.kv_bytes(1, 1)
    block = spec.mlp_parameters / spec.mlp_blocks
    values = layers * (kv * head + mlp * block) + ends * spec.embedding_parameters
    return round((values + 0.05 * layers * min(head, block)) * BYTES_PER_VALUE)


@dataclass(frozen=True, slots=True)
class Part:
    """A node to start."""

    name: str
    memory_bytes: int
    slowdown: float = 1.0
    more_kv: bool = True  # so that the tests' sessions fit beside the one that is planned
    dtype: str = "f32"


@dataclass
class NodeProcess:
    """One node process and everything that it has printed."""

    part: Part
    process: subprocess.Popen[str]
    state: Path
    lines: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # monotonic, of each line
    started: float = field(default_factory=time.monotonic)
    family: set[int] = field(default_factory=set)  # every process of it that was ever seen
    _news: "queue.Queue[None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, start: str, seconds: float = START_SECONDS, after: int = 0) -> str:
        """Wait for a line that begins so, from line `after` on, and return the rest of it."""

        def found() -> list[str]:
            return [line for line in self.lines[after:] if line.startswith(start)]

        wait_until(lambda: found() or not self.is_alive, seconds, self.said)
        assert found(), self.said()
        return found()[0].removeprefix(start).strip()

    def seconds_to(self, start: str, since: str = "") -> float:
        """How long it took from its start, or its first line that begins so, to another one."""
        self.line(start)
        begun = self._time_of(since) if since else self.started
        return self._time_of(start) - begun

    def _time_of(self, start: str) -> float:
        return self.times[[line.startswith(start) for line in self.lines].index(True)]

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def peer_tail(self) -> str:
        """The end of its peer id, as the story tells it."""
        return self.line("node: ").partition("(")[2].partition(")")[0]

    def remembered_invite(self) -> str:
        """The invite that it keeps for the next time: with its own addresses."""
        return (self.state / "last_invite").read_text()

    def note_family(self) -> None:
        """Remember its children, so that orphans can be found after it has ended."""
        try:
            own = psutil.Process(self.process.pid)
            self.family |= {child.pid for child in own.children(recursive=True)}
        except psutil.NoSuchProcess:
            return

    def orphans(self) -> list[str]:
        """What is left of its children."""
        left = []
        for pid in self.family:
            try:
                child = psutil.Process(pid)
                if child.status() != psutil.STATUS_ZOMBIE and _is_ours(child):
                    left.append(" ".join(child.cmdline())[:100])
            except psutil.NoSuchProcess:
                continue
        return left

    def kill(self) -> None:
        """End it without a word, like a power cut: the node and its whole family."""
        self.note_family()
        self.process.kill()
        self.process.wait(KILL_SECONDS)

    def interrupt(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Ask it to leave; returns its exit code and the seconds that it took."""
        self.note_family()
        asked = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        took = time.monotonic() - asked
        self._reader.join(5)
        return code, took

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.times.append(time.monotonic())
            self.lines.append(line.rstrip())
        self.process.stdout.close()

    def said(self) -> str:
        """The end of it, to explain a failure."""
        return f"{self.part.name} said:\n" + "\n".join(self.lines[-30:])


class Nodes:
    """Every node of a test; leaving the block ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[NodeProcess] = []

    def start(self, part: Part, *how: str, **variables: str) -> NodeProcess:
        """Start a node; `how` is --host, or --join INVITE; `variables` of its environment."""
        return self._start(part, (*how, "--listen", "127.0.0.1"), (), variables)

    def start_behind(self, prefix: Sequence[str], part: Part, *how: str) -> NodeProcess:
        """Start a node that listens as by default, its command line behind this one."""
        return self._start(part, how, prefix, {})

    def start_relay(self, prefix: Sequence[str], name: str, *how: str) -> NodeProcess:
        """Start `swarm relay`, its command line behind this one."""
        words = ("relay", *how, "--name", name, "--state", str(self._folder / name))
        return self._run(Part(name, 0), (*prefix, sys.executable, "-m", "swarm", *words), {})

    def start_gateway(self, *how: str) -> NodeProcess:
        """Start `swarm serve` on loopback."""
        words = ("serve", *how, "--state", str(self._folder / "gateway"))
        part = Part("gateway", 0)
        return self._run(part, (sys.executable, "-m", "swarm", *words), {})

    def start_from(self, source: Path, part: Part, *how: str) -> NodeProcess:
        """Start a node of the packages in `source`, not of those of this process."""
        prefix = ("env", f"--chdir={source}", f"PYTHONPATH={source}")
        return self._start(part, (*how, "--listen", "127.0.0.1"), prefix, {})

    def _start(
        self, part: Part, how: Sequence[str], prefix: Sequence[str], variables: dict[str, str]
    ) -> NodeProcess:
        command = [sys.executable, "-m", "swarm.node", *how, *flags_of(part, self._folder)]
        return self._run(part, (*prefix, *command), variables)

    def _run(self, part: Part, command: Sequence[str], variables: dict[str, str]) -> NodeProcess:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(self._folder) | variables,
        )
        node = NodeProcess(part, process, self._folder / part.name)
        self.started.append(node)
        return node

    def stop(self) -> None:
        """Interrupt those that still live, all at once."""
        alive = [node for node in self.started if node.is_alive]
        threads = [threading.Thread(target=node.interrupt) for node in alive]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@contextmanager
def nodes_in(folder: Path) -> Iterator[Nodes]:
    """Hold node processes; none outlives the block."""
    nodes = Nodes(folder)
    try:
        yield nodes
    finally:
        nodes.stop()


def swarm(*words: str, state: Path) -> subprocess.CompletedProcess[str]:
    """A command of the user whose state is there, by `python -m swarm`."""
    return subprocess.run(
        [sys.executable, "-m", "swarm", *words, "--state", str(state)],
        capture_output=True,
        text=True,
        env=environment(state.parent),
        timeout=COMMAND_SECONDS,
        check=False,
    )


def delegates_invite(host: NodeProcess) -> str:
    """An invite of a private swarm whose buyers may admit others, when the host has gone."""
    invite = Invite.parse(host.line("invite:"))
    machines, now = MachineState(host.state), time.time()
    holding = machines.holding(invite.swarm)
    assert holding is not None
    issuer = holding, machines.identity()
    return replace(
        invite, ticket=sell(invite.swarm, issuer, now, now + 3600.0, AS_DELEGATE)
    ).encode()


def flags_of(part: Part, folder: Path) -> Sequence[str]:
    return (
        *("--memory", f"{part.memory_bytes}B"),
        *(("--sessions-memory", MORE_KV) if part.more_kv else ()),
        *("--slowdown", str(part.slowdown), "--name", part.name, "--threads", "1"),
        *("--state", str(folder / part.name), "--dtype", part.dtype),
    )


def environment(folder: Path) -> dict[str, str]:
    """This process's environment without anybody's swarm in it, and without the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    return kept | {"HF_HUB_OFFLINE": "1", "XDG_STATE_HOME": str(folder / "home")}


def wait_until(
    fact: Callable[[], object], seconds: float, explain: Callable[[], str] = str
) -> None:
    """Wait for a fact, looking often; fails with an explanation."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not within {seconds} s. {explain()}"
        time.sleep(0.02)


def _is_ours(process: psutil.Process) -> bool:
    """Whether a process id still belongs to a child of a node, and not to a later process."""
    words = " ".join(process.cmdline())
    return "p2pd" in words or "node.worker" in words
