"""The switch of a wire: carries packets between TUN devices, late, slowly or not at all.

A process of its own, run by wire.py with the number of a socket: by it come devices and rules, each
answered, and when it closes the switch ends. It imports nothing but the standard library, so that
it starts at once.
"""

import gc
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

BURST_PACKETS = 64  # read from one device before the others have their turn
PACKET_BYTES = 65536
MESSAGE_BYTES = 65536
QUEUE_SECONDS = 0.3  # what a slow link holds back before it drops, like the buffer of a router
WAITING_PACKETS = 100_000  # under way at once on all links together
SOON_SECONDS = 0.0002  # not worth waiting for
IDLE_SECONDS = 5.0
SEED = 1  # of the losses


@dataclass(slots=True)
class Line:
    """One way between two addresses: how it treats packets, and what it has carried."""

    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0  # zero: as fast as it goes
    loss: float = 0.0
    is_cut: bool = False
    carried_bytes: int = 0
    dropped_packets: int = 0
    free_at: float = 0.0  # when the last byte so far has left

    def due(self, size: int, now: float, chance: float) -> float | None:
        """When a packet of this size arrives, or None where it never does."""
        leaves = max(self.free_at, now)
        if self.is_cut or chance < self.loss or leaves - now > QUEUE_SECONDS:
            self.dropped_packets += 1
            return None
        if self.bytes_per_second:
            leaves += size / self.bytes_per_second
            self.free_at = leaves
        self.carried_bytes += size
        return leaves + self.delay_seconds


@dataclass(slots=True)
class Switch:
    """Devices by address, lines between them, and the packets that are under way."""

    control: socket.socket
    devices: dict[bytes, int] = field(default_factory=dict)
    lines: dict[tuple[bytes, bytes], Line] = field(default_factory=dict)
    under_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    packets: int = 0

    def run(self) -> None:
        """Carry packets until the socket closes."""
        while True:
            self._deliver()
            control = self.control.fileno()
            files = [control, *self.devices.values()]
            readable, _, _ = select.select(files, [], [], self._pause())
            if control in readable and not self._obey():
                return
            for device in readable:
                if device != control:
                    self._read(device)

    def _pause(self) -> float:
        if not self.under_way:
            return IDLE_SECONDS
        return max(0.0, self.under_way[0][0] - time.monotonic())

    def _deliver(self) -> None:
        """Hand over what is due."""
        soon = time.monotonic() + SOON_SECONDS
        while self.under_way and self.under_way[0][0] <= soon:
            _, _, device, packet = heapq.heappop(self.under_way)
            with suppress(OSError):  # its host is gone, or takes no more
                os.write(device, packet)

    def _read(self, device: int) -> None:
        for _ in range(BURST_PACKETS):
            try:
                packet = os.read(device, PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:  # its namespace is gone
                self._forget(device)
                return
            self._carry(packet)

    def _forget(self, device: int) -> None:
        self.devices = {at: each for at, each in self.devices.items() if each != device}
        os.close(device)

    def _carry(self, packet: bytes) -> None:
        source, target = ends_of(packet)
        device = self.devices.get(target)
        if device is None or len(self.under_way) >= WAITING_PACKETS:
            return
        line = self.lines.setdefault((source, target), Line())
        due = line.due(len(packet), time.monotonic(), self.chance.random())
        if due is not None:
            self.packets += 1
            heapq.heappush(self.under_way, (due, self.packets, device, packet))

    def _obey(self) -> bool:
        """Do what one message asks; False where there will be no more."""
        text, devices, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 1)
        if not text:
            return False
        self.control.send(json.dumps(self._answer(json.loads(text), devices)).encode())
        return True

    def _answer(self, message: dict[str, object], devices: list[int]) -> object:
        if devices:
            self.devices[_bytes_of(str(message["address"]))] = devices[0]
            return "plugged"
        ends = (_bytes_of(str(message["source"])), _bytes_of(str(message["target"])))
        line = self.lines.setdefault(ends, Line())
        for name in ("delay_seconds", "bytes_per_second", "loss", "is_cut"):
            if name in message:
                setattr(line, name, message[name])
        return {"carried_bytes": line.carried_bytes, "dropped_packets": line.dropped_packets}


def ends_of(packet: bytes) -> tuple[bytes, bytes]:
    """The addresses from which and to which a packet goes."""
    if packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    return packet[8:24], packet[24:40]


def _bytes_of(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def main() -> None:
    """Be the switch behind the socket of this number."""
    with suppress(OSError):  # before busy tests, where that is allowed: delays stay true
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()  # there are no cycles here, and a pause would delay packets
    Switch(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
