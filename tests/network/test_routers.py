"""Peers behind kernel NATs: direct where a hole can be punched, relayed and well where not.

The peers hold no model, so that a machine with few cores can carry many of them; they do all that
a node does about its way to the others.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swarm.checkpoint.folder import read_spec
from swarm.hardware import DIRECT, PUNCHED, RELAYED
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import swarm_id
from tests.network.conftest import model_of
from tests.network.homes import Home, Ports
from tests.network.hosted_swarm import swarm_on
from tests.network.hosts import Host, Network
from tests.network.laboratory import Laboratory
from tests.whole.reference_model import expected
from tests.whole.swarms import Nodes, Part, shard_bytes

pytestmark = pytest.mark.network

SWARM = swarm_id("homes", peer_named("founder"))
PORT = 4001
START_SECONDS, SECONDS = 60.0, 60.0  # on a machine that is busy with other things
READY_SECONDS = 10.0  # from both being ready to a direct connection


@dataclass
class Light:
    """A light peer and what it has said."""

    name: str
    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)
    _news: "queue.Queue[None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(
        self, fact: Callable[[dict[str, Any]], object], seconds: float = SECONDS, after: int = 0
    ) -> dict[str, Any]:
        """The first word of it, after so many others, of which a fact holds."""
        deadline = time.monotonic() + seconds
        while True:
            for words in self.said[after:]:
                if fact(words):
                    return words
            try:
                self._news.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"{self.name} said only {self.said}")

    def kind_of(self, other: "Light", wanted: str, seconds: float = SECONDS) -> dict[str, Any]:
        """When it is connected to another one in a way."""
        return self.until(lambda words: words.get("kinds", {}).get(other.name) == wanted, seconds)

    @property
    def address(self) -> str:
        """Where it listens."""
        found: str = self.until(lambda words: "address" in words, START_SECONDS)["address"]
        return found

    def has_relays(self, count: int, after: int = 0) -> None:
        """Wait until so many relays work for it."""
        self.until(lambda words: words.get("relays", -1) >= count, after=after)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.startswith("{"):
                    self.said.append(json.loads(line))
                    self._news.put(None)


@dataclass
class Town:
    """Public hosts, and homes behind routers."""

    lab: Laboratory
    outer: Network
    peers: list[Light] = field(default_factory=list)
    publics: list[Light] = field(default_factory=list)
    homes: int = 0

    def public(self) -> Light:
        """Start a peer on a public host of its own; it knows the first one."""
        host = self.lab.host(f"public{len(self.publics)}")
        self.lab.attach(host, self.outer, 10 + len(self.publics))
        peer = self._start(host, f"public{len(self.publics)}", self.publics[:1])
        self.publics.append(peer)
        return peer

    def home(self, ports: Ports = Ports.KEPT) -> Home:
        """Build a home."""
        self.homes += 1
        home = self.lab.home(f"home{self.homes}", self.outer, 100 + self.homes, "10.0.0")
        home.translate(ports)
        return home

    def at_home(self, home: Home, number: int = 2) -> Light:
        """Start a peer on a host in a home; it knows the first public one."""
        name = f"{home.router.name}-{number}"
        host = self.lab.host(name)
        self.lab.attach(host, home.network, number)
        return self._start(host, name, self.publics[:1])

    def _start(self, host: Host, name: str, known: list[Light]) -> Light:
        module = (sys.executable, "-m", "tests.network.light_peer")
        command = [*host.command, *module, name, str(PORT), SWARM, *(k.address for k in known)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peer = Light(name, process)
        self.peers.append(peer)
        return peer


@pytest.fixture
def town(lab: Laboratory) -> Iterator[Town]:
    """An empty town; its peers end before its networks do."""
    town = Town(lab, lab.network("11.0.0"))
    try:
        yield town
    finally:
        for peer in town.peers:
            peer.kill()


def two_homes(town: Town, publics: int, ports: Ports) -> tuple[Light, Light]:
    """Public hosts, and a peer in each of two homes, both with a place at a relay."""
    for _ in range(publics):
        town.public()
    for peer in town.publics:
        assert peer.address
    one, other = (town.at_home(town.home(ports)) for _ in range(2))
    for peer in (one, other):
        peer.has_relays(1)
    return one, other


@pytest.mark.slow
def test_two_homes_that_keep_ports_talk_directly_where_there_are_six_public_hosts(
    town: Town,
) -> None:
    one, other = two_homes(town, 6, Ports.KEPT)
    one.kind_of(other, PUNCHED, READY_SECONDS)
    other.kind_of(one, PUNCHED, READY_SECONDS)
    assert all(words["home"] != "" for words in one.said[-1:] if "home" in words)


@pytest.mark.slow
def test_homes_that_choose_ports_at_random_stay_relayed_and_hear_each_other(town: Town) -> None:
    one, other = two_homes(town, 4, Ports.FULLY_RANDOM)
    one.kind_of(other, RELAYED)
    other.kind_of(one, RELAYED)
    time.sleep(READY_SECONDS)  # that it stays so is what is tested
    for peer, far in ((one, other), (other, one)):
        last = [words["kinds"] for words in peer.said if "kinds" in words][-1]
        assert last[far.name] == RELAYED


def test_two_peers_of_one_home_talk_at_their_private_addresses(town: Town) -> None:
    town.public()
    home = town.home()
    one, other = town.at_home(home, 2), town.at_home(home, 3)
    one.kind_of(other, DIRECT)
    other.kind_of(one, DIRECT)


def test_a_relay_that_turns_public_after_the_homes_joined_is_asked_for_a_place_again(
    town: Town,
) -> None:
    one, other = two_homes(town, 1, Ports.KEPT)
    one.kind_of(other, RELAYED)
    said = len(one.said), len(other.said)
    town.public()  # by which the first one learns that it is public, and forgets every place
    for peer, before in zip((one, other), said, strict=True):
        peer.has_relays(2, after=before)  # both keep a place, dialed through by a stranger
    time.sleep(5.0)
    assert "missed" not in one.said[-1]


def test_when_a_relay_dies_the_other_one_carries_on(town: Town) -> None:
    one, other = two_homes(town, 2, Ports.KEPT)
    for peer in (one, other):
        peer.has_relays(2)
    one.kind_of(other, RELAYED)
    town.publics[1].kill()
    said = len(one.said)
    one.until(lambda words: words.get("relays") == 1, after=said)
    last = [words["kinds"] for words in one.said if "kinds" in words][-1]
    assert last.get(other.name) == RELAYED


LONG_TEXT, MANY = "Once upon a time " * 40, 160  # more bytes than a relay's first limit lets pass


@pytest.mark.slow
@pytest.mark.nodes
def test_one_public_host_and_two_homes_serve_through_a_relay_that_cuts(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """The commonest swarm; its relay ends each circuit after 128 KiB, and no token is lost."""
    model = model_of(tmp_path / "model", layers=4)
    spec = read_spec(model, str(model))
    half = shard_bytes(spec, 2, spec.kv_heads, spec.mlp_blocks, ends=1)
    outer, hosts = lab.network("11.0.0"), [lab.host(name) for name in ("founder", "one", "two")]
    lab.attach(hosts[0], outer, 10)
    for number, host in enumerate(hosts[1:], 1):
        lab.attach(host, lab.home(f"home{number}", outer, 100 + number).network, 2)
    parts = [Part("founder", half // 40), Part("one", half), Part("two", half)]
    swarm = swarm_on(hosts, parts, nodes, model, [("--port", str(PORT))] * 3)
    swarm.wait_until_ready(1, 2)
    for node in swarm.nodes[1:]:
        assert "joins through relay" in node.line("reach: not reachable from outside")
    asking = swarm.ask_from(hosts[0], MANY, LONG_TEXT)
    assert asking.ids() == expected(LONG_TEXT, MANY, model)
