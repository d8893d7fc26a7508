"""Where the nodes of a run stand: on this machine, or on hosts of a laboratory that can be cut off.

On the wire each node is a host of its own, as is whoever asks: this thread enters the network of
its host, so that what it starts from then on stands there.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from swarm.errors import SwarmError
from tests.network.hosts import Host
from tests.network.laboratory import Laboratory
from tests.network.wire import Wire

PREFIX = "11.0.0"  # looks public to libp2p
NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
NAMESPACES = Path("/run/netns")


class Ground(Protocol):
    """Where nodes stand."""

    def before(self, name: str) -> Sequence[str]:
        """What stands before the command line of a node."""

    def options(self, name: str) -> Sequence[str]:
        """Where a node listens."""

    def cut(self, name: str) -> None:
        """Let nothing pass between a node and everybody else, either way."""

    def mend(self, name: str) -> None:
        """End the cut."""


class Loopback:
    """This machine, where nobody can be cut off."""

    def before(self, name: str) -> Sequence[str]:
        """Nothing."""
        del name
        return ()

    def options(self, name: str) -> Sequence[str]:
        """On this machine alone."""
        del name
        return ("--listen", "127.0.0.1")

    def cut(self, name: str) -> None:
        """Raise SwarmError: it cannot be done."""
        raise SwarmError(f"{name} cannot be cut off on one host.", "Run with --laboratory, as root")

    def mend(self, name: str) -> None:
        """Raise SwarmError: nothing was cut."""
        self.cut(name)


class Hosts:
    """A laboratory: a host for each node, and one for whoever asks."""

    def __init__(self, lab: Laboratory, wire: Wire) -> None:
        self._lab, self._wire = lab, wire
        self._hosts: dict[str, Host] = {}
        self._here = self._host("asking")

    def before(self, name: str) -> Sequence[str]:
        """What runs a command on the node's host."""
        return self._host(name).command

    def options(self, name: str) -> Sequence[str]:
        """At its address on the wire."""
        return ("--listen", self._address(name))

    def cut(self, name: str) -> None:
        """Cut its host off."""
        self._wire.part([self._address(name)], self._others(name))

    def mend(self, name: str) -> None:
        """Join its host to the others again."""
        self._wire.join([self._address(name)], self._others(name))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and what it starts, stand on the host of whoever asks."""
        with open("/proc/self/ns/net", "rb") as before:
            with open(NAMESPACES / self._here.namespace, "rb") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = self._lab.host(name)
            self._lab.attach(self._hosts[name], self._wire, len(self._hosts))
        return self._hosts[name]

    def _address(self, name: str) -> str:
        return self._host(name).addresses[0]

    def _others(self, name: str) -> list[str]:
        return [each.addresses[0] for other, each in self._hosts.items() if other != name]


def _enter(namespace: int) -> None:
    """Move this thread to another network; raises OSError."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, NETWORK_NAMESPACE):
        raise OSError(ctypes.get_errno(), "cannot enter the network of a host")


@contextmanager
def open_ground(*, on_hosts: bool) -> Iterator[Ground]:
    """Hold the ground of a run; raises NoLaboratory where hosts cannot be had."""
    if not on_hosts:
        yield Loopback()
        return
    with Laboratory() as lab:
        ground = Hosts(lab, lab.wire(PREFIX))
        with ground.entered():
            yield ground
