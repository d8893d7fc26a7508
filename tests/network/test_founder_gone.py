"""Peers whose network was cut, or hangs, find each other again, whoever founded the swarm."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.network.laboratory import Laboratory
from tests.network.wire import Wire
from tests.whole.swarms import environment, wait_until

pytestmark = pytest.mark.network

START_SECONDS = 90.0
JOIN_SECONDS = 60.0  # after the network is whole
PART_SECONDS = 60.0  # until records of the other half have ended
HUNG_SECONDS = 60.0  # for a peer to end a p2pd of its own that answers nothing


@dataclass
class BoardPeer:
    """A peer on a host of its own, and what it said."""

    host: str  # its address
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    address: str = ""

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):
                self._note(*json.loads(line))
        self.process.stdout.close()

    def _note(self, kind: str, what: object) -> None:
        if kind == "names" and isinstance(what, list):
            self.names = what
        elif kind == "address":
            self.address = str(what)
        else:
            self.lines.append(str(what))

    def daemon(self) -> psutil.Process:
        """Its p2pd."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(each for each in family if each.name() == "p2pd")

    def waits(self, *names: str, seconds: float) -> None:
        """Wait until it sees just these."""
        wait_until(lambda: self.names == sorted(names), seconds, lambda: f"{self}")


class Peers:
    """The peers of a test; leaving the block ends them."""

    def __init__(self, lab: Laboratory, wire: Wire, folder: Path) -> None:
        self._lab, self._wire, self._folder = lab, wire, folder
        self._stack = ExitStack()
        self._count = 0

    def close(self) -> None:
        self._stack.close()

    def start(self, name: str, *invited: str) -> BoardPeer:
        """Start a peer; who is not waited for is somewhere on its way."""
        self._count += 1
        host = self._lab.host(name)
        where = self._lab.attach(host, self._wire, self._count)
        process = subprocess.Popen(
            [
                *host.command,
                sys.executable,
                "-m",
                "tests.network.board_peer",
                name,
                where,
                *invited,
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(self._folder),
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        peer = BoardPeer(where, process)
        threading.Thread(target=peer.read, daemon=True).start()
        return peer


@pytest.fixture
def wire(lab: Laboratory) -> Wire:
    return lab.wire("11.0.0")


@pytest.fixture
def peers(lab: Laboratory, wire: Wire, tmp_path: Path) -> Iterator[Peers]:
    peers = Peers(lab, wire, tmp_path)
    yield peers
    peers.close()


def test_halves_of_a_swarm_find_each_other_again(wire: Wire, peers: Peers) -> None:
    """Each half has company and would be content with it."""
    founder = peers.start("founder")
    wait_until(lambda: founder.address, START_SECONDS)
    oak, elm, ash = (peers.start(name, founder.address) for name in ("oak", "elm", "ash"))
    everybody = (founder, oak, elm, ash)
    for each in everybody:
        each.waits("founder", "oak", "elm", "ash", seconds=START_SECONDS)
    wire.part((founder.host, oak.host), (elm.host, ash.host))
    for each in (founder, oak):
        each.waits("founder", "oak", seconds=PART_SECONDS)
    for each in (elm, ash):
        each.waits("elm", "ash", seconds=PART_SECONDS)
    wire.heal()
    for each in everybody:
        each.waits("founder", "oak", "elm", "ash", seconds=JOIN_SECONDS)


def test_who_starts_while_its_only_peer_is_cut_off_joins_when_it_is_back(
    wire: Wire, peers: Peers
) -> None:
    """A host that is cut off refuses nothing: it is silent."""
    founder = peers.start("founder")
    wait_until(lambda: founder.address, START_SECONDS)
    wire.cut(founder.host, "11.0.0.2")
    early = peers.start("early", founder.address)
    wait_until(lambda: early.lines, START_SECONDS)
    assert early.lines[0].startswith("alone: the only address is silent (11.0.0.1:4001 no ")
    wire.heal()
    early.waits("founder", "early", seconds=JOIN_SECONDS)
    assert "joined: 1 other peer is there" in early.lines


def test_a_peer_whose_p2pd_hangs_starts_another_one_and_is_found_where_it_was(
    peers: Peers,
) -> None:
    founder = peers.start("founder")
    wait_until(lambda: founder.address, START_SECONDS)
    oak = peers.start("oak", founder.address)
    for each in (founder, oak):
        each.waits("founder", "oak", seconds=START_SECONDS)
    hung = founder.daemon()
    hung.send_signal(signal.SIGSTOP)
    wait_until(lambda: not hung.is_running(), HUNG_SECONDS)
    for each in (founder, oak):
        each.waits("founder", "oak", seconds=JOIN_SECONDS)
    late = peers.start("late", founder.address)  # where it listened before
    late.waits("founder", "oak", "late", seconds=START_SECONDS)
