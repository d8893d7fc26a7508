"""A swarm with each node on a host of its own, and what people on those hosts see of it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.network.hosts import Host
from tests.whole.reference_model import expected
from tests.whole.swarms import START_SECONDS, NodeProcess, Nodes, Part, environment, wait_until

TEXT, NEW = "Once upon a time", 24
END_SECONDS = 5.0


@dataclass
class Asking:
    """A client on a host, while its answer comes."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # monotonic, of each line

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_pieces(self, count: int, seconds: float = START_SECONDS) -> None:
        """Wait until so many pieces of the answer are there."""
        wait_until(
            lambda: self._pieces() >= count or self.process.poll() is not None, seconds, self._said
        )
        assert self.process.poll() in (None, 0), self._said()

    def ids(self, seconds: float = START_SECONDS) -> list[int]:
        """The new ids, when the answer is complete."""
        self.process.wait(seconds)
        self._reader.join(END_SECONDS)
        assert self.process.returncode == 0, self._said()
        found: list[int] = json.loads(self.lines[-1])
        return found

    @property
    def longest_pause(self) -> float:
        """Seconds, at most, from one piece to the next."""
        return max(later - at for at, later in zip(self.times, self.times[1:], strict=False))

    def _pieces(self) -> int:
        return sum(line.startswith('"') for line in self.lines)

    def _said(self) -> str:
        return "\n".join(self.lines[-30:])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.times.append(time.monotonic())
            self.lines.append(line.rstrip())
        self.process.stdout.close()


@dataclass
class HostedSwarm:
    """Nodes that were started, and who may be asked about them."""

    nodes: list[NodeProcess]
    invite: str
    model: Path
    tmp: Path

    def wait_until_ready(self, *which: int) -> None:
        """Wait until these nodes serve, or all."""
        for each in which or range(len(self.nodes)):
            self.nodes[each].line("ready:")

    def ask_from(self, host: Host, count: int = NEW, text: str = TEXT) -> Asking:
        """Begin to ask on a host."""
        command = [*host.command, sys.executable, "-m", "tests.network.ask"]
        return Asking(
            subprocess.Popen(
                [*command, self.invite, str(count), text],
                env=environment(self.tmp),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def answer_on(self, host: Host, count: int = NEW) -> list[int]:
        """What a client on a host gets."""
        return self.ask_from(host, count).ids()

    def expected(self, count: int = NEW, text: str = TEXT) -> list[int]:
        """What the whole model answers in this process."""
        return expected(text, count, self.model)

    def seen_from(self, host: Host, what: str = "status") -> dict[str, Any]:
        """`swarm status` or `swarm plan` on a host."""
        done = subprocess.run(
            [*host.command, sys.executable, "-m", "swarm", what, "--json", "--join", self.invite],
            env=environment(self.tmp),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def links_from(self, host: Host) -> dict[frozenset[str], dict[str, Any]]:
        """What `swarm status` on a host says of each link, by the names of its ends."""
        status = self.seen_from(host)
        names = {each["peer"]: each["name"] for each in status["peers"]}
        return {frozenset(names[p] for p in link["peers"]): link for link in status["links"]}

    def parts(self) -> list[str]:
        """What each node says of its part, when it has one."""
        return [node.line("plan:") for node in self.nodes]


def swarm_on(
    hosts: Sequence[Host],
    parts: Sequence[Part],
    nodes: Nodes,
    model: Path,
    options: Sequence[Sequence[str]] = (),
) -> HostedSwarm:
    """Start a node on each host: the first founds a swarm of this model, the others join it."""
    more = [*options, *[()] * (len(hosts) - len(options))]
    how = ("--host", "--model", str(model), *more[0])
    first = nodes.start_behind(hosts[0].command, parts[0], *how)
    invite = first.line("invite:")
    started = [first]
    for host, part, extra in zip(hosts[1:], parts[1:], more[1:], strict=True):
        started.append(nodes.start_behind(host.command, part, "--join", invite, *extra))
    return HostedSwarm(started, invite, model, model.parent)
