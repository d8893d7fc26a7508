"""DirectLinks: which relayed connections are mended, how, by whom, and how often."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from node.network import direct_links
from node.network.direct_links import DirectLinks
from node.network.reachability import ReachState, verdict_of
from swarm.hardware import DIRECT, PUNCHED, RELAYED
from swarm.p2p.dial_back import Finding
from swarm.p2p.link_kinds import kind_of, observers_among, why_not_direct, why_relayed
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named

ONE, TWO = sorted((peer_named("one"), peer_named("two")))
CIRCUIT = f"/ip4/11.0.0.10/tcp/1/p2p/{peer_named('relay')}/p2p-circuit"
OUTSIDE, INSIDE = "/ip4/11.0.0.102/tcp/4001", "/ip4/192.168.1.8/tcp/4001"
PUBLICS = {peer_named(f"public {n}"): (f"/ip4/11.0.0.{n}/tcp/1",) for n in range(4)}


@dataclass
class FakeLines:
    """Connections as a test wants them; a call after hanging up may punch a hole."""

    connections: dict[str, Sequence[str]]
    punches: bool = True
    ready: bool = True
    answers_at: tuple[str, ...] = ()
    did: list[str] = field(default_factory=list)

    async def connected(self) -> Mapping[str, Sequence[str]]:
        return dict(self.connections)

    async def disconnect(self, peer: str) -> None:
        self.did.append("hang up")
        self.connections.pop(peer, None)

    async def dial(self, peer: str, addresses: Sequence[str]) -> bool:
        self.did.append(f"dial {','.join(addresses)}")
        found = [each for each in addresses if each in self.answers_at]
        if found:
            self.connections[peer] = (found[0],)
        return bool(found)

    async def is_ready_to_punch(self, peer: str) -> bool:
        self.did.append("ready?")
        return self.ready


def state(*, private: bool = True, home: str = "home one") -> ReachState:
    finding = Finding(("11.0.0.101",), () if private else (OUTSIDE,))
    return ReachState(private, verdict_of([finding]), home=home)


def record(*addresses: str, reachable: bool = False, home: str = "", local: str = "") -> Capability:
    return Capability(
        *("model", [], [], "host"),
        reachable=reachable,
        since=1.0,
        addresses=list(addresses),
        home=home,
        local=[local] if local else [],
    )


Story = Callable[[DirectLinks], Awaitable[None]]


def played(
    lines: FakeLines, other: Capability, story: Story, *, me: str = ONE, peer: str = TWO
) -> None:
    """Let a story happen to a node with one neighbour."""

    async def run() -> None:
        world = MemoryWorld()

        async def alive(_peer: str, _payload: bytes) -> bytes:
            lines.did.append("called")
            lines.connections[peer] = (CIRCUIT, OUTSIDE) if lines.punches else (CIRCUIT,)
            return b""

        world.channel(peer).answer("alive", alive)
        links = DirectLinks(lines, world.channel(me), lambda: {peer: other})
        links.own = state()
        await story(links)

    asyncio.run(run())


async def looked(links: DirectLinks) -> None:
    """One look, and the end of what it began."""
    await links.look()
    await links._tasks.wait(5.0)
    await links.look()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "PUNCH_SECONDS", "READY_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(direct_links, name, 0.001)


def test_kinds_follow_from_the_addresses_in_use() -> None:
    assert kind_of([CIRCUIT], are_both_private=True) == RELAYED
    assert kind_of([CIRCUIT, OUTSIDE], are_both_private=True) == PUNCHED
    assert kind_of([CIRCUIT, OUTSIDE], are_both_private=False) == DIRECT
    assert kind_of([INSIDE], are_both_private=True) == DIRECT  # a machine of the same home


def test_observers_are_hosts_outside_and_each_counts_once() -> None:
    same = {"a": ("/ip4/11.0.0.1/tcp/1",), "b": ("/ip4/11.0.0.1/tcp/2",)}
    assert observers_among(same | {"c": (INSIDE,), "d": (CIRCUIT,)}) == 1
    assert observers_among(PUBLICS) == 4


def test_the_reason_names_what_is_lacking() -> None:
    assert why_relayed(1) == "one public host only: hole punching needs four public peers"
    assert why_relayed(3).startswith("3 public hosts only")
    assert "another port" in why_relayed(4)


def test_why_a_link_is_not_direct_depends_on_where_both_ends_are() -> None:
    inside = Capability("m", [], [], "host", reachable=False, since=0.0, home="a")
    public, elsewhere = replace(inside, reachable=True), replace(inside, home="b")
    assert why_not_direct(inside, elsewhere, 1) == why_relayed(1)
    assert "firewall" in why_not_direct(public, inside, 1)
    assert "private addresses" in why_not_direct(inside, inside, 4)


def test_a_relayed_peer_is_called_anew_and_a_hole_is_punched() -> None:
    lines = FakeLines({TWO: (CIRCUIT,), **PUBLICS})

    async def story(links: DirectLinks) -> None:
        await looked(links)
        assert lines.did == ["ready?", "hang up", "called"]
        assert links.kinds == {TWO: PUNCHED}

    played(lines, record(), story)


def test_the_other_side_waits_for_the_call() -> None:
    lines = FakeLines({ONE: (CIRCUIT,), **PUBLICS})

    async def story(links: DirectLinks) -> None:
        await looked(links)
        assert lines.did == []
        assert links.kinds == {ONE: RELAYED}

    played(lines, record(), story, me=TWO, peer=ONE)


def test_it_is_tried_twice_and_then_seldom() -> None:
    lines = FakeLines({TWO: (CIRCUIT,), **PUBLICS}, punches=False)

    async def story(links: DirectLinks) -> None:
        for _ in range(5):
            await looked(links)
        assert lines.did.count("called") == direct_links.TRIES
        links._efforts[TWO].tried_at = time.monotonic() - direct_links.SELDOM_SECONDS - 1
        await looked(links)
        assert lines.did.count("called") == direct_links.TRIES + 1

    played(lines, record(), story)


def test_nothing_is_broken_where_nothing_can_come_of_it() -> None:
    few = dict(list(PUBLICS.items())[:3])
    for lines in (FakeLines({TWO: (CIRCUIT,), **few}), FakeLines({TWO: (CIRCUIT, OUTSIDE)})):

        async def story(links: DirectLinks, lines: FakeLines = lines) -> None:
            await looked(links)
            assert lines.did == []

        played(lines, record(), story)


def test_who_is_not_ready_to_punch_keeps_its_relayed_connection() -> None:
    lines = FakeLines({TWO: (CIRCUIT,), **PUBLICS}, ready=False)

    async def story(links: DirectLinks) -> None:
        await looked(links)
        assert set(lines.did) == {"ready?"}

    played(lines, record(), story)


def test_a_session_is_not_broken_for_a_better_way(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = FakeLines({TWO: (CIRCUIT,), **PUBLICS})

    async def story(links: DirectLinks) -> None:
        monkeypatch.setattr(links._channel, "is_quiet", lambda _peer: False)
        await looked(links)
        assert lines.did == []
        monkeypatch.setattr(links._channel, "is_quiet", lambda _peer: True)  # its last one is over
        await looked(links)
        assert "called" in lines.did

    played(lines, record(), story)


def test_streams_leave_a_relay_as_soon_as_there_is_a_direct_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = FakeLines({TWO: (CIRCUIT,)})
    left: list[str] = []

    async def story(links: DirectLinks) -> None:
        monkeypatch.setattr(links._channel, "leave_relay", left.append)
        await looked(links)
        assert left == []
        lines.connections[TWO] = (CIRCUIT, OUTSIDE)
        await links.look()
        assert left == [TWO]

    played(lines, record(), story)


def test_machines_of_one_home_connect_at_their_private_addresses() -> None:
    lines = FakeLines({TWO: (CIRCUIT,)}, answers_at=(INSIDE,))

    async def story(links: DirectLinks) -> None:
        await looked(links)
        assert lines.did == ["hang up", f"dial {INSIDE}"]
        assert links.kinds == {TWO: DIRECT}

    played(lines, record(home="home one", local=INSIDE), story)


def test_a_peer_that_others_can_dial_is_dialed() -> None:
    lines = FakeLines({ONE: (CIRCUIT,)}, answers_at=(OUTSIDE,))

    async def story(links: DirectLinks) -> None:
        await looked(links)
        assert lines.did == ["hang up", f"dial {OUTSIDE}"]
        assert links.kinds == {ONE: DIRECT}

    played(lines, record(OUTSIDE, reachable=True), story, me=TWO, peer=ONE)


def test_a_stream_waits_for_what_is_under_way_and_for_nothing_else() -> None:
    lines = FakeLines({TWO: (CIRCUIT,), **PUBLICS})

    async def story(links: DirectLinks) -> None:
        await links.wait_for(TWO)
        assert lines.did == []
        await links.look()
        await links.wait_for(TWO)
        assert lines.did[-1] == "called"

    played(lines, record(), story)


def test_how_a_link_went_is_known_while_its_circuit_is_cut() -> None:
    lines = FakeLines({TWO: (CIRCUIT,)})

    async def story(links: DirectLinks) -> None:
        await looked(links)
        del lines.connections[TWO]
        await looked(links)
        assert links.kinds == {TWO: RELAYED}
        assert lines.did == []
        lines.connections[TWO] = (OUTSIDE,)
        await looked(links)
        assert links.kinds == {TWO: PUNCHED}

    played(lines, record(), story)
