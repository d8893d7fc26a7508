"""Town: public hosts, and homes behind routers, each with a peer that holds no model.

So a machine with few cores can carry many of them; they do all that a node does about its way to
the others.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from swarm.testing.memory_network import peer_named
from swarm.trust.identity import swarm_id
from tests.network.homes import Home, Ports
from tests.network.hosts import Host, Network
from tests.network.laboratory import Laboratory
from tests.network.light_peer import FRANK, SHY
from tests.network.wire import Wire

SWARM = swarm_id("homes", peer_named("founder"))
PORT = 4001
START_SECONDS, SECONDS = 60.0, 60.0  # on a machine that is busy with other things
Words = dict[str, Any]  # of a light peer; "at" is the system's monotonic clock


class Unsaid(AssertionError):
    """A peer did not say in time what it should have said."""


@dataclass
class Light:
    """A light peer and what it has said."""

    name: str
    process: subprocess.Popen[str]
    said: list[Words] = field(default_factory=list)
    _news: "queue.Queue[None]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(
        self, fact: Callable[[Words], object], seconds: float = SECONDS, since: float = 0.0
    ) -> Words:
        """The first word of it, from a moment on, of which a fact holds; raises Unsaid."""
        deadline = time.monotonic() + seconds
        while True:
            for words in tuple(self.said):
                if words.get("at", 0.0) >= since and fact(words):
                    return words
            try:
                self._news.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise Unsaid(f"{self.name} said only {self.said}") from None

    def kind_of(
        self, other: "Light", wanted: str, seconds: float = SECONDS, since: float = 0.0
    ) -> Words:
        """When it is connected to another one in a way; raises Unsaid."""
        return self.until(
            lambda words: words.get("kinds", {}).get(other.name) == wanted, seconds, since
        )

    def last_kind_of(self, other: "Light") -> str:
        """How it is connected to another one, as far as it said; empty if it did not."""
        told = [words["kinds"] for words in self.said if "kinds" in words]
        kind: str = told[-1].get(other.name, "") if told else ""
        return kind

    def knows(self, other: "Light") -> Words:
        """When it has read of another one; raises Unsaid."""
        return self.until(lambda words: other.name in words.get("knows", ()))

    def hears(self, other: "Light", since: float = 0.0) -> Words:
        """When another one answers it; raises Unsaid."""
        return self.until(lambda words: words.get("heard") == other.name, since=since)

    def faults(self, since: float = 0.0) -> list[Words]:
        """What it said of frames that were not sent, or came out of order, and of lost streams."""
        return [
            words
            for words in self.said
            if words.get("at", 0.0) >= since and {"lost", "unsent", "disorder"} & words.keys()
        ]

    @property
    def peer(self) -> str:
        """Its peer id; raises Unsaid."""
        return self.address.rpartition("/p2p/")[2]

    @property
    def address(self) -> str:
        """Where it listens; raises Unsaid."""
        found: str = self.until(lambda words: "address" in words, START_SECONDS)["address"]
        return found

    def has_relays(self, count: int, seconds: float = SECONDS, since: float = 0.0) -> Words:
        """When so many relays work for it, by a stranger's word; raises Unsaid."""
        return self.until(lambda words: words.get("relays", -1) >= count, seconds, since)

    def has_lost_relays(self, left: int = 0, since: float = 0.0) -> Words:
        """When no more than so many relays work for it; raises Unsaid."""
        return self.until(lambda words: words.get("relays", left + 1) <= left, since=since)

    def send(self, other: "Light", **flow: float) -> None:
        """Let it send frames to another one; what may be said of them `light_peer` says."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"to": other.name, **flow}) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
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
    outer: Network | Wire
    peers: list[Light] = field(default_factory=list)
    publics: list[Light] = field(default_factory=list)
    hosts: int = 0  # public ones
    homes: int = 0

    def public(self) -> Light:
        """Start a peer on a public host of its own; it knows the first one."""
        name = f"public{len(self.publics)}"
        peer = self._start(self._public_host(name), name, self.publics[:1])
        self.publics.append(peer)
        return peer

    def observer(self) -> Light:
        """Start what is of no swarm on a public host; libp2p of the first one learns from it."""
        host = self._public_host("observer")
        known = self.publics[0].address
        return self._begin(host, "observer", "tests.network.observer", str(PORT), known)

    def home(self, ports: Ports = Ports.KEPT) -> Home:
        """Build a home."""
        self.homes += 1
        home = self.lab.home(f"home{self.homes}", self.outer, 100 + self.homes, "10.0.0")
        home.translate(ports)
        return home

    def at_home(self, home: Home, number: int = 2, *, is_shy: bool = False) -> Light:
        """Start a peer on a host in a home; it knows the first public one.

        A shy one does nothing by itself about its way to other private ones.
        """
        name = f"{home.router.name}-{number}"
        host = self.lab.host(name)
        self.lab.attach(host, home.network, number)
        return self._start(host, name, self.publics[:1], SHY if is_shy else FRANK)

    def settle(self, publics: int) -> None:
        """Start so many public peers, and wait until they are there; raises Unsaid."""
        for _ in range(publics):
            self.public()
        for peer in self.publics:
            assert peer.address

    def two_homes(self, ports: Ports = Ports.KEPT) -> tuple[Light, Light]:
        """A peer in each of two new homes, both with a place at a relay; raises Unsaid."""
        one, other = (self.at_home(self.home(ports)) for _ in range(2))
        for peer in (one, other):
            peer.has_relays(1)
        return one, other

    def _public_host(self, name: str) -> Host:
        host = self.lab.host(name)
        self.hosts += 1
        self.lab.attach(host, self.outer, 9 + self.hosts)
        return host

    def _start(self, host: Host, name: str, known: list[Light], manners: str = FRANK) -> Light:
        words = (name, str(PORT), SWARM, manners, *(each.address for each in known))
        return self._begin(host, name, "tests.network.light_peer", *words)

    def _begin(self, host: Host, name: str, module: str, *words: str) -> Light:
        command = [*host.command, sys.executable, "-m", module, *words]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        peer = Light(name, process)
        self.peers.append(peer)
        return peer


@contextmanager
def town_in(lab: Laboratory, outer: Network | Wire | None = None) -> Iterator[Town]:
    """Hold an empty town; its peers end before its networks do."""
    town = Town(lab, outer or lab.network("11.0.0"))
    try:
        yield town
    finally:
        for peer in town.peers:
            peer.kill()
