"""A laboratory of hosts on one machine: networks, wires that are far, homes behind routers.

Needs root, `ip` of iproute2, and `nft` of nftables for homes. Bridges lie in a namespace of their
own, so that this machine's network is not touched and nothing in it forwards for us; names are
unique, so that laboratories may run side by side. Addresses exist inside the namespaces only; those
that have to look public to libp2p begin with 11.
"""

import os
import re
import secrets
import shutil
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.network.homes import Home, Ports, open_router
from tests.network.hosts import Host, Network
from tests.network.namespaces import LaboratoryError, NoLaboratory, run
from tests.network.wire import Wire

TOOLS = {"ip": "iproute2", "unshare": "util-linux", "hostname": "hostname"}  # and their packages
OURS = re.compile(r"^swarm-(?P<process>\d+)-[0-9a-f]{6}-\S+", re.MULTILINE)  # namespaces
NAT_TOOLS = {"nft": "nftables"}


class Laboratory:
    """Networks and hosts; `close` ends every process on them and takes them down."""

    def __init__(self) -> None:
        self._name = f"swarm-{os.getpid()}-{secrets.token_hex(3)}"
        self._namespaces: list[str] = []
        self._wires: list[Wire] = []
        self._bridges = 0
        self._switch = ""  # the namespace with the bridges

    def __enter__(self) -> "Laboratory":
        """Begin; raises NoLaboratory where this machine cannot build one."""
        _check_root()
        _check_tools(TOOLS)
        _remove_stale()
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                self._switch = self._namespace("switch")
                self.network("192.0.2")  # whether bridges can be had
            except LaboratoryError as error:
                raise NoLaboratory(str(error)) from error
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def network(self, prefix: str) -> Network:
        """Lay a new fast network with addresses like `prefix`.1."""
        self._bridges += 1
        bridge = f"bridge{self._bridges}"
        run("ip", "-n", self._switch, "link", "add", bridge, "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", bridge, "up")
        return Network(bridge, prefix, self._switch)

    def wire(self, prefix: str) -> Wire:
        """Lay a new network whose links may be far, slow, lossy or cut."""
        wire = Wire(prefix)
        self._wires.append(wire)
        return wire

    def host(self, name: str) -> Host:
        """Set up a host that is on no network yet; its name is its own in this laboratory."""
        return Host(name, self._namespace(name))

    def attach(self, host: Host, network: Network | Wire, number: int) -> str:
        """Put a host on a network under this number; returns its address there."""
        address = f"{network.prefix}.{number}"
        device = f"eth{len(host.addresses)}"
        network.plug(host.namespace, device, address)
        run("ip", "-n", host.namespace, "addr", "add", f"{address}/24", "dev", device)
        run("ip", "-n", host.namespace, "link", "set", device, "up")
        if network.gateway:
            run("ip", "-n", host.namespace, "route", "add", "default", "via", network.gateway)
        host.addresses.append(address)
        return address

    def home(self, name: str, outer: Network | Wire, number: int, prefix: str = "10.0.0") -> Home:
        """Set up a home whose router has this number on the outer network, and keeps ports.

        Homes may have the same inner addresses. Raises NoLaboratory where nftables cannot be had.
        """
        _check_tools(NAT_TOOLS)
        router, inner = self.host(f"{name}-router"), self.network(prefix)
        address = self.attach(router, outer, number)
        inner.gateway = self.attach(router, inner, 1)
        open_router(router)
        home = Home(router, inner, address)
        home.translate(Ports.KEPT)
        return home

    def close(self) -> None:
        """Take everything down, whatever of it is there."""
        for namespace in self._namespaces:
            _remove(namespace)
        self._namespaces.clear()
        for wire in self._wires:
            wire.close()
        self._wires.clear()

    def _namespace(self, name: str) -> str:
        namespace = f"{self._name}-{name}"
        self._namespaces.append(namespace)
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace


def _remove(namespace: str) -> None:
    """End every process on a namespace and take it down, if it is there."""
    with suppress(LaboratoryError):
        for process in run("ip", "netns", "pids", namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        run("ip", "netns", "del", namespace)


def _remove_stale() -> None:
    """Take down what processes left that were killed before they could."""
    with suppress(LaboratoryError):
        for found in OURS.finditer(run("ip", "netns", "list")):
            if not Path("/proc", found["process"]).exists():
                _remove(found[0])


def _check_root() -> None:
    if os.geteuid() != 0:
        raise NoLaboratory("network namespaces need root")


def _check_tools(tools: dict[str, str]) -> None:
    for tool, package in tools.items():
        if shutil.which(tool) is None:
            raise NoLaboratory(f"there is no `{tool}`: install {package}")
