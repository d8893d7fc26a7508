"""Links are measured right, both ways, against what plain TCP gets on the same wire."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median_high

import pytest

from tests.network.hosts import Host
from tests.network.laboratory import Laboratory
from tests.network.test_laboratory import ONE, PUBLIC, TWO, answering, round_trip, said_by, two_on
from tests.network.wire import MBIT

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
]  # needs cores that do nothing else: it measures

LINK_PEER = "tests.network.link_peer"
PORT = 4001
OFF = 0.3  # a share, at most
TIMES = 3  # of which the middle one counts, as in a node
SECONDS = 90.0
CORNERS = [(5, 200), (80, 5), (80, 200)]  # ms, Mbit/s
TABLE = [(ms, mbit) for ms in (5, 20, 40, 80) for mbit in (5, 20, 100, 200)]
FREE = 0

Found = list[tuple[float, float]]  # seconds, bytes per second


@contextmanager
def measured_peer(host: Host, address: str) -> Iterator[tuple[list[str], Found]]:
    """A peer on a host: its id and address, and in the end what it found."""
    command = [*host.command, sys.executable, "-m", LINK_PEER, "serve", address]
    found: Found = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        yield json.loads(peer.stdout.readline()), found
        said, _ = peer.communicate(timeout=SECONDS)
        found += [json.loads(line) for line in said.splitlines()]


def measured_both_ways(one: Host, two: Host, times: int) -> tuple[Found, Found]:
    """What the peer that measures finds, and the one that is measured."""
    with measured_peer(one, ONE) as (where, theirs):
        command = [*two.command, sys.executable, "-m", LINK_PEER, "measure", TWO, *where]
        done = subprocess.run(
            [*command, str(times)], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], theirs


def plain_tcp(one: Host, two: Host) -> tuple[float, float, float]:
    """Round trip, and bytes per second from one to two and back."""
    with answering(one):
        there, back_seconds = said_by(two, "rate", ONE, PORT)[0], round_trip(two, ONE)
    with answering(two):
        back = said_by(one, "rate", TWO, PORT)[0]
    return back_seconds, float(back), float(there)


@pytest.mark.parametrize(("ms", "mbit"), CORNERS)
def test_a_link_is_measured_as_far_and_as_fast_as_it_is(
    lab: Laboratory, ms: int, mbit: int
) -> None:
    wire = lab.wire(PUBLIC)
    one, two = two_on(lab, wire)
    wire.between(ONE, TWO, delay_seconds=ms / 2000, bytes_per_second=mbit * MBIT)
    seconds, *rates = plain_tcp(one, two)
    for found, rate in zip(measured_both_ways(one, two, TIMES), rates, strict=True):
        assert median_high(each[1] for each in found) == pytest.approx(rate, rel=OFF)
        assert found[-1][0] == pytest.approx(seconds, rel=OFF)


@pytest.mark.slow
def test_the_table_of_links(lab: Laboratory) -> None:
    """Prints it, too: `pytest -s -m "network and slow" tests/network/test_links.py`."""
    wire = lab.wire(PUBLIC)
    one, two = two_on(lab, wire)
    off: list[tuple[int, int]] = []
    for ms, mbit in [*TABLE, (22, FREE)]:
        wire.between(ONE, TWO, delay_seconds=ms / 2000, bytes_per_second=mbit * MBIT)
        seconds, *rates = plain_tcp(one, two)
        rows = measured_both_ways(one, two, TIMES)
        sys.stdout.write(f"{ms} ms, {mbit or 'free'} Mbit/s; TCP {1000 * seconds:.1f} ms")
        for found, rate in zip(rows, rates, strict=True):
            each = " ".join(f"{found_rate / MBIT:.1f}" for _, found_rate in found)
            trip = 1000 * median_high(trip for trip, _ in found)
            sys.stdout.write(f"; TCP {rate / MBIT:.1f}: {each} ({trip:.1f} ms)")
            middle = median_high(found_rate for _, found_rate in found)
            is_right = abs(middle / rate - 1) <= OFF if mbit else middle > 100 * MBIT
            off += [] if is_right else [(ms, mbit)]
        sys.stdout.write("\n")
        sys.stdout.flush()
    assert off == []
