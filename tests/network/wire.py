"""A network whose links are far, slow, lossy or cut, each way as a test says, while it runs.

A process of its own (switch.py) carries every packet: true to about 1 ms and to some 200 Mbit/s.
Kernels without netem do it too, and every machine does it alike.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.network.namespaces import LaboratoryError, NoLaboratory, run

MBIT = 1e6 / 8  # bytes per second
TUN = Path("/dev/net/tun")
SET_DEVICE, PACKETS_ALONE = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN, IFF_NO_PI
QUEUED_PACKETS = "2000"
ANSWER_SECONDS = 10.0
ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Carried:
    """What went one way so far, and what was dropped on it."""

    carried_bytes: int
    dropped_packets: int


class Wire:
    """A network with a rule for each way between two addresses; without one it is fast.

    Hosts get on it by `Laboratory.attach`, and routers of homes by `Laboratory.home`. Rules are
    named by the addresses on this network: of a home by that of its router.
    """

    gateway = ""  # every address is near: nobody needs a router

    def __init__(self, prefix: str) -> None:
        """Start its switch; raises NoLaboratory where the kernel has no TUN devices."""
        if not TUN.exists():
            raise NoLaboratory(f"there is no {TUN}: load the kernel's module tun")
        self.prefix = prefix
        self._devices = 0
        self._addresses: list[str] = []
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_SECONDS)
        with far:
            command = [sys.executable, str(Path(__file__).with_name("switch.py"))]
            self._switch = subprocess.Popen(
                [*command, str(far.fileno())], pass_fds=[far.fileno()], start_new_session=True
            )

    def between(
        self,
        one: str,
        other: str,
        *,
        delay_seconds: float = 0.0,
        bytes_per_second: float = 0.0,
        loss: float = 0.0,
    ) -> None:
        """Rule both ways alike; a delay is one way's, and a rate of zero is as fast as it goes."""
        rule = (delay_seconds, bytes_per_second, loss)
        self.one_way(one, other, *rule)
        self.one_way(other, one, *rule)

    def one_way(
        self,
        source: str,
        target: str,
        delay_seconds: float = 0.0,
        bytes_per_second: float = 0.0,
        loss: float = 0.0,
    ) -> None:
        """Rule what goes from one address to another; a cut stays as it is."""
        rule = {"delay_seconds": delay_seconds, "bytes_per_second": bytes_per_second}
        self._ask({"source": source, "target": target, "loss": loss, **rule})

    def everywhere(self, *, delay_seconds: float, bytes_per_second: float = 0.0) -> None:
        """Rule every way between those that are attached by now."""
        for source, target in product(self._addresses, repeat=2):
            self.one_way(source, target, delay_seconds, bytes_per_second)

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass any more, either way."""
        self.part([one], [other])

    def cut_one_way(self, source: str, target: str) -> None:
        """Let nothing pass any more from one to the other; the way back stays."""
        self._ask({"source": source, "target": target, "is_cut": True})

    def part(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Cut every link between two halves."""
        for one, other in product(list(some), list(others)):
            self.cut_one_way(one, other)
            self.cut_one_way(other, one)

    def join(self, some: Iterable[str], others: Iterable[str]) -> None:
        """End every cut between two halves."""
        for one, other in product(list(some), list(others)):
            self._ask({"source": one, "target": other, "is_cut": False})
            self._ask({"source": other, "target": one, "is_cut": False})

    def heal(self) -> None:
        """End every cut; delays, rates and losses stay."""
        self.join(self._addresses, self._addresses)

    def carried(self, source: str, target: str) -> Carried:
        """What went this way so far."""
        return Carried(**self._ask({"source": source, "target": target}))

    def plug(self, namespace: str, device: str, address: str) -> None:
        """Lay a device of this network into a namespace."""
        self._devices += 1
        name = f"t{os.getpid()}x{self._devices}"
        with open(TUN, "r+b", buffering=0) as tun:
            fcntl.ioctl(tun, SET_DEVICE, struct.pack("16sH22x", name.encode(), PACKETS_ALONE))
            run("ip", "link", "set", name, "netns", namespace)
            run("ip", "-n", namespace, "link", "set", name, "name", device)
            os.set_blocking(tun.fileno(), False)
            self._ask({"address": address}, tun.fileno())
        run("ip", "-n", namespace, "link", "set", device, "txqueuelen", QUEUED_PACKETS)
        self._addresses.append(address)

    def close(self) -> None:
        """End the switch, and with it the devices."""
        self._control.close()
        with suppress(ProcessLookupError):
            self._switch.kill()
        self._switch.wait(ANSWER_SECONDS)

    def _ask(self, message: dict[str, object], *devices: int) -> dict[str, int]:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], devices)
            answer: dict[str, int] = json.loads(self._control.recv(ANSWER_BYTES))
        except (OSError, ValueError) as error:
            raise LaboratoryError(f"the switch does not answer: {error}") from error
        return answer
