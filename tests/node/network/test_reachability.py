"""Reachability: what dial-backs come to, which role follows, and how places at relays are kept."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from node.network import reachability
from node.network.reachability import (
    Reachability,
    ReachState,
    View,
    find_relays,
    home_of_host,
    verdict_of,
    view_of,
)
from node.status_lines import reach_words
from swarm.p2p.dial_back import QUESTION, Finding
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import RELAYS_CAP, is_probably_private, relays_among
from swarm.records import Capability, Relay
from swarm.testing.memory_network import MemoryWorld, peer_named

ME = peer_named("me")
HOME, WAN = "192.168.1.7", "203.0.113.7"
PORT = 4001


def relay_at(name: str, host: str = "198.51.100.9") -> str:
    return f"/ip4/{host}/tcp/{PORT}/p2p/{peer_named(name)}"


def capability(*addresses: str, reachable: bool = True) -> Capability:
    return Capability(
        "model", [], [], "host", reachable=reachable, since=1.0, addresses=list(addresses)
    )


REACHED = Finding((WAN,), (f"/ip4/{WAN}/tcp/{PORT}",))
VAIN = Finding((WAN,), ())
INSIDE = Finding((HOME,), (f"/ip4/{HOME}/tcp/{PORT}",))


@dataclass
class FakeWays:
    """A daemon that keeps places at the relays that work, and remembers how it was started."""

    network: Network
    working: set[str] = field(default_factory=set)
    held: list[str] = field(default_factory=list)
    starts: list[Network] = field(default_factory=list)
    connections: dict[str, Sequence[str]] = field(default_factory=dict)

    async def relays(self) -> Sequence[str]:
        return self.held

    async def is_reached_through(self, relay: str) -> bool:
        return relay in self.working

    async def connected(self) -> Mapping[str, Sequence[str]]:
        return self.connections

    async def replace_daemon(self, network: Network) -> None:
        self.starts.append(network)
        self.network = network
        self.held = [relay for relay in network.relays if relay in self.working]


@dataclass
class Stand:
    """A node whose neighbours answer as a test says."""

    ways: FakeWays
    world: MemoryWorld
    reach: Reachability
    noted: list[ReachState]
    now: list[float]

    async def look(self, seconds: float = 0.0) -> ReachState:
        self.now[0] += seconds
        await self.reach.look()
        return self.noted[-1]

    def neighbour(self, name: str, finding: Finding) -> None:
        async def answer(_peer: str, _payload: bytes) -> bytes:
            return finding.to_bytes()

        self.world.channel(peer_named(name)).answer(QUESTION, answer)


Story = Callable[[Stand], Awaitable[None]]


def played(
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: Mapping[str, Capability],
    network: Network | None = None,
) -> None:
    """Let a story happen to a node with these neighbours."""
    now = [1000.0]
    monkeypatch.setattr("node.network.reachability.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "node.network.reachability.own_multiaddrs",
        lambda _host, port: (f"/ip4/{HOME}/tcp/{port}", f"/ip4/127.0.0.1/tcp/{port}"),
    )

    async def known() -> Mapping[str, Capability]:
        return {peer_named(name): each for name, each in capabilities.items()}

    async def run() -> None:
        world = MemoryWorld()
        ways = FakeWays(network or Network(host="0.0.0.0", port=PORT))
        noted: list[ReachState] = []
        reach = Reachability(ways, world.channel(ME), world.board(ME), "swarm", known, noted.append)
        await story(Stand(ways, world, reach, noted, now))

    asyncio.run(run())


def test_most_of_who_sees_us_from_outside_settle_it() -> None:
    assert verdict_of([]) is None
    assert verdict_of([Finding((), ())]) is None
    for findings, is_reachable in (
        ([REACHED], True),
        ([VAIN], False),
        ([REACHED, VAIN], True),
        ([REACHED, VAIN, VAIN], False),
        ([INSIDE, VAIN], False),
        ([INSIDE, REACHED], True),
    ):
        verdict = verdict_of(findings)
        assert verdict is not None
        assert verdict.is_reachable is is_reachable
        assert verdict.is_from_outside
        assert verdict.seen == WAN
    inside = verdict_of([INSIDE])
    assert inside is not None
    assert inside.is_reachable
    assert not inside.is_from_outside


def test_a_machine_with_private_addresses_in_a_public_swarm_is_taken_for_private() -> None:
    home, public, peer = [f"/ip4/{HOME}/tcp/1"], [f"/ip4/{WAN}/tcp/1"], relay_at("peer")
    assert is_probably_private((), [peer], home)
    assert is_probably_private((), [peer, f"/ip4/{HOME}/tcp/2"], home)
    assert not is_probably_private((), [], home)  # a founder
    assert not is_probably_private((), [f"/ip4/{HOME}/tcp/2"], home)  # a swarm at home
    assert not is_probably_private((), [peer], home + public)
    assert not is_probably_private(("/ip4/203.0.113.7/tcp/1",), [peer], home)


def test_relays_are_dedicated_ones_then_dialed_nodes_then_known_ones() -> None:
    public = "/ip4/198.51.100.2/tcp/1"
    found = relays_among(
        {peer_named("relay"): Relay([f"/ip4/{HOME}/tcp/1", "/ip4/198.51.100.1/tcp/1"], since=0.0)},
        {
            peer_named("node"): capability(public),
            peer_named("home"): capability("/ip4/198.51.100.3/tcp/1", reachable=False),
        },
        (f"{public}/p2p/{peer_named('node')}", relay_at("known")),
    )
    assert [each.rpartition("/")[2] for each in found] == [
        peer_named("relay"),
        peer_named("node"),
        peer_named("known"),
    ]


def test_who_is_dialed_back_stays_public_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", REACHED)
        at.neighbour("two", REACHED)
        state = await at.look()
        assert state.is_reachable
        assert at.ways.starts == []
        assert reach_words(state) == f"reachable at {WAN}:{PORT}, dialed back by 2 peers"

    played(story, monkeypatch, {"one": capability(), "two": capability()})


def test_who_is_dialed_in_vain_takes_the_private_role(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", VAIN)
        at.ways.working = {relay_at("one")}
        state = await at.look()
        assert [start.is_private for start in at.ways.starts] == [True]
        assert at.ways.starts[0].relays == (relay_at("one"),)
        assert not state.is_reachable
        assert state.relays == (relay_at("one"),)
        assert state.home == home_of_host("swarm", WAN)
        assert state.local == (f"/ip4/{HOME}/tcp/{PORT}",)
        assert "not reachable from outside (1 peer tried" in reach_words(state)
        assert "joins through relay" in reach_words(state)

    played(story, monkeypatch, {"one": capability("/ip4/198.51.100.9/tcp/4001")})


def test_who_is_dialed_at_last_becomes_public(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", REACHED)
        state = await at.look()
        assert [start.is_private for start in at.ways.starts] == [False]
        assert state.is_reachable
        assert state.relays == ()

    private = Network(host="0.0.0.0", port=PORT, is_private=True)
    played(story, monkeypatch, {"one": capability()}, private)


def test_a_lan_alone_changes_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", INSIDE)
        state = await at.look()
        assert state.is_reachable
        assert (state.home, state.local) == ("", ())
        assert "in this network, dialed back by 1 peer" in reach_words(state)
        at.neighbour("one", Finding((HOME,), ()))
        state = await at.look(reachability.CHECK_SECONDS + 1)
        assert not state.is_reachable
        assert at.ways.starts == []

    played(story, monkeypatch, {"one": capability()})


def test_neighbours_that_cannot_answer_leave_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.world.channel(peer_named("old"))  # it knows no such question
        state = await at.look()
        assert state.verdict is None
        assert state.is_reachable
        at.neighbour("old", VAIN)
        await at.look()
        assert at.ways.starts == []  # it is not asked at every look
        await at.look(reachability.AGAIN_SECONDS + 1)
        assert len(at.ways.starts) == 1

    played(story, monkeypatch, {"old": capability()})


CIRCUIT = f"{relay_at('relay')}/p2p-circuit"
BLIND = Finding((), ())  # of who is connected to us through a relay


@pytest.mark.parametrize(
    ("addresses", "can_be_dialed", "view"),
    [
        ([relay_at("peer"), CIRCUIT], False, View.OUTSIDE),
        ([f"/ip4/{HOME}/tcp/1"], True, View.INSIDE),
        ([f"/ip4/{HOME}/tcp/1", relay_at("peer")], True, View.OUTSIDE),
        ([CIRCUIT], True, View.NONE),
        ([], True, View.ONCE_ASKED),
        ([], False, View.NONE),
    ],
)
def test_through_a_relay_nobody_sees_us(
    addresses: Sequence[str], can_be_dialed: bool, view: View
) -> None:
    assert view_of(addresses, can_be_dialed=can_be_dialed) is view


def test_who_sees_us_is_asked_however_many_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    homes = {f"home {number}": capability(reachable=False) for number in range(40)}

    async def story(at: Stand) -> None:
        for name in homes:
            at.neighbour(name, BLIND)
            at.ways.connections[peer_named(name)] = [CIRCUIT]
        at.neighbour("beside", INSIDE)
        at.ways.connections[peer_named("beside")] = [f"/ip4/{HOME}/tcp/1"]
        at.neighbour("public", REACHED)
        state = await at.look()
        assert state.verdict is not None
        assert (state.verdict.tried, state.verdict.is_from_outside) == (1, True)

    others = {"public": capability(), "beside": capability(reachable=False)}
    played(story, monkeypatch, homes | others)


def test_a_peer_that_sees_us_at_last_is_asked_and_the_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {name: capability(reachable=False) for name in ("a", "b", "c", "late")}
    known["public"] = capability()
    questions: list[str] = []

    async def story(at: Stand) -> None:
        for name in known:
            at.neighbour(name, REACHED if name in ("public", "late") else BLIND)
            at.ways.connections[peer_named(name)] = [CIRCUIT]
        at.ways.connections[peer_named("public")] = [relay_at("public")]
        late = known.pop("late")
        ask = at.reach._finding

        async def noted(peer: str) -> Finding | None:
            questions.append(peer)
            return await ask(peer)

        monkeypatch.setattr(at.reach, "_finding", noted)
        for _ in range(3):
            await at.look(reachability.AGAIN_SECONDS + 1)
        assert questions == [peer_named("public")]
        known["late"] = late
        at.ways.connections[peer_named("late")] = [relay_at("late")]
        state = await at.look(reachability.AGAIN_SECONDS + 1)
        assert state.verdict is not None
        assert state.verdict.tried == 2

    played(story, monkeypatch, known)


def test_a_lost_place_is_noticed_and_p2pd_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", VAIN)
        at.ways.held = [relay_at("one")]
        at.ways.working = {relay_at("one")}
        assert (await at.look()).relays == (relay_at("one"),)
        at.ways.working = set()  # the relay has become public: it remembers nobody
        assert (await at.look(5.0)).relays == (relay_at("one"),)
        assert (await at.look(reachability.WATCH_SECONDS)).relays == ()
        assert len(at.ways.starts) == 1
        at.ways.held = [relay_at("one")]
        await at.look(reachability.PLACE_SECONDS)
        assert len(at.ways.starts) == 1  # not at every look
        at.ways.working = {relay_at("one")}
        assert (await at.look(reachability.WATCH_SECONDS + 1)).relays == (relay_at("one"),)
        assert len(at.ways.starts) == 1

    played(story, monkeypatch, {"one": capability("/ip4/198.51.100.9/tcp/4001")}, _private("one"))


def test_a_second_relay_is_wanted_as_soon_as_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", VAIN)
        at.ways.held = [relay_at("one")]
        at.ways.working = {relay_at("one"), relay_at("two")}
        await at.look(reachability.PLACE_SECONDS)
        assert at.ways.starts == []
        second = Relay(["/ip4/198.51.100.9/tcp/4001"], since=0.0)
        await at.world.board(peer_named("two")).publish(second)
        at.neighbour("two", VAIN)
        await at.look(reachability.READ_SECONDS + 1)
        assert set(at.ways.starts[0].relays) == {relay_at("one"), relay_at("two")}
        assert len((await at.look(reachability.WATCH_SECONDS)).relays) == 2

    played(story, monkeypatch, {"one": capability("/ip4/198.51.100.9/tcp/4001")}, _private("one"))


def test_one_of_two_relays_that_is_lost_is_replaced_by_a_third(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """p2pd holds places at those alone that it was started with."""

    async def story(at: Stand) -> None:
        for name in ("one", "two"):
            at.neighbour(name, VAIN)
        at.ways.held = [relay_at("one"), relay_at("two")]
        at.ways.working = {relay_at(name) for name in ("one", "two", "three")}
        await at.look()
        for name in ("three", "four", "five", "six"):  # whose peers would be asked first
            address = relay_at(name).partition("/p2p/")[0]
            await at.world.board(peer_named(name)).publish(Relay([address], since=0.0))
        await at.look(reachability.READ_SECONDS + 1)
        assert at.ways.starts == []  # two are enough
        at.ways.held = [relay_at("one")]
        await at.look(reachability.PLACE_SECONDS)
        assert relay_at("one") in at.ways.starts[0].relays  # what works is kept
        assert len(at.ways.starts[0].relays) == RELAYS_CAP
        at.ways.held = [relay_at("one")]  # nobody else has room
        await at.look(reachability.WATCH_SECONDS)
        assert len(at.ways.starts) == 1  # all have been asked

    known = capability("/ip4/198.51.100.9/tcp/4001")
    played(story, monkeypatch, {"one": known, "two": known}, _private("one", "two"))


def test_a_relay_that_is_named_by_hand_is_asked_for_a_place_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(stand: Stand) -> None:
        assert (await stand.look(1.0)).relays == ()  # it has forgotten us
        await stand.look(reachability.CHANGE_SECONDS)
        assert stand.ways.starts[-1].relays == (named,)
        stand.ways.working.add(named)
        await stand.look(2 * reachability.CHANGE_SECONDS)
        assert (await stand.look(1.0)).relays == (named,)

    named = relay_at("named")
    network = Network(host="0.0.0.0", port=PORT, is_private=True, relays=(named,))
    played(story, monkeypatch, {}, network)


def test_several_relays_are_looked_for_before_anything_else() -> None:
    async def story() -> None:
        world, ways = MemoryWorld(), FakeWays(_private("one"))
        world.channel(ME)
        await find_relays(ways, world.board(ME))
        assert ways.starts == []
        await world.board(peer_named("two")).publish(Relay(["/ip4/198.51.100.9/tcp/4001"], 0.0))
        await find_relays(ways, world.board(ME))
        assert ways.network.relays == (relay_at("two"), relay_at("one"))
        await find_relays(ways, world.board(ME))
        assert len(ways.starts) == 1

    asyncio.run(story())


def test_without_a_relay_the_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Stand) -> None:
        at.neighbour("one", VAIN)
        words = reach_words(await at.look())
        assert "no relay holds a place" in words
        assert "`swarm relay`" in words
        assert "--announce" in words

    played(story, monkeypatch, {"one": capability()}, replace(_private("one"), relays=()))


def _private(*names: str) -> Network:
    return Network(
        host="0.0.0.0",
        port=PORT,
        is_private=True,
        relays=tuple(map(relay_at, names)),
        initial_peers=tuple(map(relay_at, names)),
    )
