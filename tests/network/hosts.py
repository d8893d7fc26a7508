"""Hosts on one machine, as network namespaces, and the fast networks between them."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from tests.network.namespaces import run

ESTABLISHED = "01"  # in /proc/net/tcp


@dataclass(slots=True)
class Network:
    """A bridge to which hosts are attached: every host on it reaches every other one."""

    bridge: str
    prefix: str  # the first three numbers of its addresses
    switch: str  # the namespace with the bridge
    gateway: str = ""  # the address of its way out, if it has one
    ports: int = 0

    def plug(self, namespace: str, device: str, address: str) -> None:
        """Lay a device of this network into a namespace."""
        self.ports += 1
        port = f"{self.bridge}p{self.ports}"
        far = ("peer", "name", port, "netns", self.switch)
        run("ip", "-n", namespace, "link", "add", device, "type", "veth", *far)
        run("ip", "-n", self.switch, "link", "set", port, "master", self.bridge, "up")


@dataclass(slots=True)
class Host:
    """A machine of its own, as far as its network and its name go."""

    name: str
    namespace: str
    addresses: list[str] = field(default_factory=list)

    @property
    def command(self) -> tuple[str, ...]:
        """What to put before a command to run it there; the process keeps its id."""
        rename = 'hostname "$1"; shift; exec "$@"'
        inside = ("ip", "netns", "exec", self.namespace, "unshare", "--uts")
        return (*inside, "sh", "-c", rename, "sh", self.name)

    def crash(self) -> None:
        """End every process on it without a word, as a power cut does."""
        for process in run("ip", "netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)


def connections_of(process: int) -> set[tuple[str, str]]:
    """The addresses, here and there, of a process's established TCP connections over IPv4."""
    folder = Path("/proc", str(process))
    files = [os.readlink(each) for each in (folder / "fd").iterdir()]
    rows = [line.split() for line in (folder / "net/tcp").read_text().splitlines()[1:]]
    own = [row for row in rows if row[3] == ESTABLISHED and f"socket:[{row[9]}]" in files]
    return {(_address(row[1]), _address(row[2])) for row in own}


def _address(end: str) -> str:
    """The address of what /proc calls 0100007F:1F90."""
    return str(IPv4Address(bytes.fromhex(end.partition(":")[0])[::-1]))
