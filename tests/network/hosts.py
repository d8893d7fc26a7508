"""Hosts on one machine: network namespaces with addresses of their own, joined by bridges.

Needs root and `ip` of iproute2. The bridges lie in a namespace of their own, so that this machine's
network is not touched and nothing in it forwards for us; names are unique, so that laboratories may
run side by side. Addresses exist inside the namespaces only.
"""

import os
import secrets
import shutil
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

COMMAND_SECONDS = 20.0
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "hostname": "hostname"}  # and their packages
ESTABLISHED = "01"  # in /proc/net/tcp


class NoLaboratory(Exception):
    """This machine cannot build one; says why."""


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge to which hosts are wired: every host on it reaches every other one."""

    bridge: str
    prefix: str  # the first three numbers of its addresses


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


class Laboratory:
    """Networks and hosts; `close` ends every process on them and takes them down."""

    def __init__(self) -> None:
        self._name = f"swarm-{os.getpid()}-{secrets.token_hex(3)}"
        self._namespaces: list[str] = []
        self._parts = 0
        self._switch = ""  # the namespace with the bridges

    def __enter__(self) -> "Laboratory":
        """Begin; raises NoLaboratory where this machine cannot build one."""
        _check_tools()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._switch = self._namespace("switch")
            self.network("192.0.2")  # whether bridges can be had
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def network(self, prefix: str) -> Network:
        """Lay a new network with addresses like `prefix`.1."""
        bridge = f"bridge{self._count()}"
        _run("ip", "-n", self._switch, "link", "add", bridge, "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", bridge, "up")
        return Network(bridge, prefix)

    def host(self, name: str) -> Host:
        """Set up a host that is on no network yet."""
        return Host(name, self._namespace(name))

    def wire(self, host: Host, network: Network, number: int) -> str:
        """Put a host on a network under this number; returns its address there."""
        address, near, far = (
            f"{network.prefix}.{number}",
            f"eth{len(host.addresses)}",
            self._count(),
        )
        port = ("peer", "name", f"port{far}", "netns", self._switch)
        _run("ip", "-n", host.namespace, "link", "add", near, "type", "veth", *port)
        _run("ip", "-n", host.namespace, "addr", "add", f"{address}/24", "dev", near)
        _run("ip", "-n", host.namespace, "link", "set", near, "up")
        _run("ip", "-n", self._switch, "link", "set", f"port{far}", "master", network.bridge, "up")
        host.addresses.append(address)
        return address

    def close(self) -> None:
        """Take everything down, whatever of it is there."""
        for namespace in self._namespaces:
            with suppress(NoLaboratory):
                for process in _run("ip", "netns", "pids", namespace).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                _run("ip", "netns", "del", namespace)
        self._namespaces.clear()

    def _namespace(self, name: str) -> str:
        namespace = f"{self._name}-{name}"
        self._namespaces.append(namespace)
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _count(self) -> int:
        self._parts += 1
        return self._parts


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise NoLaboratory("network namespaces need root")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise NoLaboratory(f"there is no `{tool}`: install {package}")


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLaboratory(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        raise NoLaboratory(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


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
