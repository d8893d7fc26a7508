"""The laboratory does to packets what a test asks of it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.network.homes import Home, Ports
from tests.network.hosts import Host
from tests.network.laboratory import Laboratory
from tests.network.wire import MBIT, Wire

pytestmark = pytest.mark.network

TALK = Path(__file__).with_name("talk.py")
TALK_SECONDS = 30.0
PUBLIC = "11.0.0"
PORT = 4001
TRUE_SECONDS = 0.002  # what the fastest echo may be late
TRUE_RATE = 0.1  # a share
TIMES = 3  # that a wire is asked: a busy machine is late and slow, never early or fast


@contextmanager
def answering(host: Host) -> Iterator[None]:
    """A TCP server on a host, which says back what it hears, and tells who asked."""
    command = [*host.command, sys.executable, str(TALK), "answer", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        try:
            yield
        finally:
            server.kill()


def said_by(host: Host, what: str, *words: object) -> Sequence[float | int | str]:
    """What talk.py finds out on a host; empty where it reaches nobody."""
    done = subprocess.run(
        [*host.command, sys.executable, str(TALK), what, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TALK_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: Sequence[float | int | str] = json.loads(done.stdout)
    return found


def round_trip(host: Host, address: str) -> float:
    """Seconds of the fastest TCP echo, or infinity where none comes back in two seconds."""
    found = said_by(host, "echo", address, PORT)
    return float(found[0]) if found else float("inf")


def is_as_told(host: Host, address: str, told: float) -> bool:
    """Whether echoes take what they are told to take: none less, and the fastest hardly more."""
    found = [round_trip(host, address)]
    while found[-1] >= told + TRUE_SECONDS and len(found) < TIMES:
        found.append(round_trip(host, address))
    return told <= min(found) < told + TRUE_SECONDS


def two_on(lab: Laboratory, wire: Wire) -> tuple[Host, Host]:
    hosts = lab.host("one"), lab.host("two")
    for number, host in enumerate(hosts):
        lab.attach(host, wire, number + 1)
    return hosts


@pytest.fixture
def wire(lab: Laboratory) -> Wire:
    return lab.wire(PUBLIC)


ONE, TWO = f"{PUBLIC}.1", f"{PUBLIC}.2"


def test_a_wire_is_as_far_as_it_is_told_while_it_runs(lab: Laboratory, wire: Wire) -> None:
    one, two = two_on(lab, wire)
    with answering(two):
        assert is_as_told(one, TWO, 0.0)
        wire.between(ONE, TWO, delay_seconds=0.02)
        assert is_as_told(one, TWO, 0.04)
        wire.one_way(ONE, TWO, 0.005)
        assert is_as_told(one, TWO, 0.025)


@pytest.mark.parametrize("mbit", [5, 20, 100])
def test_a_wire_is_as_slow_as_it_is_told(lab: Laboratory, wire: Wire, mbit: int) -> None:
    one, two = two_on(lab, wire)
    wire.between(ONE, TWO, delay_seconds=0.01, bytes_per_second=mbit * MBIT)
    with answering(two):
        rates = (float(said_by(one, "rate", TWO, PORT)[0]) / MBIT for _ in range(TIMES))
        assert any(rate == pytest.approx(mbit, rel=TRUE_RATE) for rate in rates)


def test_a_wire_loses_the_share_that_it_is_told(lab: Laboratory, wire: Wire) -> None:
    one, two = two_on(lab, wire)
    wire.one_way(ONE, TWO, loss=0.2)
    with answering(two):
        said_by(one, "rate", TWO, PORT, 0.5)
    there, back = wire.carried(ONE, TWO), wire.carried(TWO, ONE)
    assert there.dropped_packets > 0
    assert back.dropped_packets == 0


def test_a_cut_one_way_leaves_the_way_back(lab: Laboratory, wire: Wire) -> None:
    one, two = two_on(lab, wire)
    with answering(two):
        wire.cut_one_way(TWO, ONE)
        before = wire.carried(ONE, TWO).carried_bytes
        assert round_trip(one, TWO) == float("inf")
        assert wire.carried(ONE, TWO).carried_bytes > before
        wire.heal()
        assert is_as_told(one, TWO, 0.0)


def test_halves_that_part_come_together_again(lab: Laboratory, wire: Wire) -> None:
    one, two = two_on(lab, wire)
    third = lab.host("three")
    three = lab.attach(third, wire, 3)
    with answering(two):
        wire.part([ONE, TWO], [three])
        assert is_as_told(one, TWO, 0.0)
        assert round_trip(third, TWO) == float("inf")
        wire.join([TWO], [three])
        assert is_as_told(third, TWO, 0.0)
        assert round_trip(third, ONE) == float("inf")
        assert wire.carried(three, ONE).carried_bytes == 0  # this one is still cut
        wire.heal()
        round_trip(third, ONE)
        assert wire.carried(three, ONE).carried_bytes > 0


def behind(lab: Laboratory, home: Home, name: str) -> Host:
    host = lab.host(name)
    lab.attach(host, home.network, 2)
    return host


def test_a_home_is_reached_from_nowhere_and_reaches_everybody(lab: Laboratory, wire: Wire) -> None:
    """Two homes have the same addresses inside; a wire leads to them."""
    left, right = lab.home("left", wire, 11), lab.home("right", wire, 12)
    outside = lab.host("outside")
    public = lab.attach(outside, wire, 1)
    one, two = behind(lab, left, "one"), behind(lab, right, "two")
    assert one.addresses == two.addresses
    wire.between(left.address, public, delay_seconds=0.01)
    with answering(outside), answering(two):
        assert is_as_told(one, public, 0.02)
        assert is_as_told(two, public, 0.0)
        assert round_trip(outside, right.address) == float("inf")
        assert round_trip(one, right.address) == float("inf")


def test_hosts_of_one_home_reach_each_other(lab: Laboratory, wire: Wire) -> None:
    home = lab.home("left", wire, 11)
    one, two = behind(lab, home, "one"), lab.host("two")
    address = lab.attach(two, home.network, 3)
    with answering(two):
        assert is_as_told(one, address, 0.0)


@pytest.mark.parametrize("ports", list(Ports))
def test_a_router_keeps_ports_or_chooses_them_at_random(
    lab: Laboratory, wire: Wire, ports: Ports
) -> None:
    home, outside = lab.home("left", wire, 11), lab.host("outside")
    home.translate(ports)
    public, inside = lab.attach(outside, wire, 1), behind(lab, home, "inside")
    with answering(outside):
        seen = [said_by(inside, "from", public, PORT, 4100 + each) for each in range(3)]
    assert {address for address, _ in seen} == {home.address}
    kept = [port == 4100 + each for each, (_, port) in enumerate(seen)]
    assert all(kept) if ports is Ports.KEPT else not any(kept)


def test_a_router_that_is_cut_lets_nothing_through_until_it_is_mended(
    lab: Laboratory, wire: Wire
) -> None:
    home, outside = lab.home("left", wire, 11), lab.host("outside")
    public, inside = lab.attach(outside, wire, 1), behind(lab, home, "inside")
    with answering(outside):
        for ways in ({}, {"inward": False}, {"outward": False}):
            home.cut(**ways)
            assert round_trip(inside, public) == float("inf")
            home.mend()
            assert is_as_told(inside, public, 0.0)


def test_a_router_that_forgets_ends_what_went_through_it(lab: Laboratory, wire: Wire) -> None:
    home, outside = lab.home("left", wire, 11), lab.host("outside")
    public, inside = lab.attach(outside, wire, 1), behind(lab, home, "inside")
    command = [*inside.command, sys.executable, str(TALK), "again", public, str(PORT)]
    with answering(outside):
        for forgets in (False, True):
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as talk:
                assert talk.stdout is not None
                assert talk.stdout.readline() == "true\n"
                if forgets:
                    home.forget()
                still, _ = talk.communicate("again\n", timeout=TALK_SECONDS)
                assert still == ("false\n" if forgets else "true\n")
        assert is_as_told(inside, public, 0.0)


def test_what_a_laboratory_started_ends_with_it() -> None:
    with Laboratory() as lab:
        host = lab.host("one")
        lab.attach(host, lab.wire(PUBLIC), 1)
        sleeper = subprocess.Popen([*host.command, "sleep", "1000"])
        namespace = host.namespace
        assert namespace in subprocess.check_output(["ip", "netns", "list"], text=True)
    assert sleeper.wait(5) != 0
    assert namespace not in subprocess.check_output(["ip", "netns", "list"], text=True)


def test_what_a_killed_process_left_is_taken_down_by_the_next_laboratory() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    namespace = f"swarm-{gone.pid}-{'0' * 6}-one"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    with Laboratory() as lab:
        left = subprocess.check_output(["ip", "netns", "list"], text=True)
        assert namespace not in left
        assert lab.host("two").namespace not in left
