"""The board at a glance: peers, stages, planner, plan."""

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from client.cli.swarm_status import (
    SwarmStatus,
    find_status,
    read_status,
    why_idle,
)
from client.cli.tables import (
    route_line,
    show_links,
    show_peers,
    show_plan,
    show_plan_table,
    show_planner,
    show_stages,
)
from client.cli.terminal import Terminal
from client.network import Links
from client.routing.live_plan import LivePlan, read_plan, trust_of
from swarm.election import ERA_SECONDS, rank
from swarm.errors import BadInvite, NoRoute
from swarm.hardware import DIRECT, PUNCHED, RELAYED, Device, Link, assumed_relayed
from swarm.invites import Invite
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import (
    Advert,
    Capability,
    Lease,
    Member,
    PlanRef,
    Relay,
    StageAdvert,
    Trouble,
)
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.certificates import founder_proof
from swarm.trust.identity import Identity, swarm_id

ONE, TWO, ME = peer_named("one"), peer_named("two"), peer_named("me")
INVITE = Invite((), "forest-abc", "swarm-tiny", "a key")
DEVICE = Device(0, "cpu", "CPU", 2_000_000, 1e9, 2e9)
PLAN = Plan((Pipeline((Stage(0, 6, (Shard(f"{ONE}/0", 1, 1), Shard(f"{TWO}/0", 1, 0))),)),))
MEMBERS = [Member(ONE, 0, 1, 1), Member(TWO, 0, 1, 0)]


async def fill(world: MemoryWorld) -> Links:
    """Two peers that serve one stage together."""
    for peer, name in ((ONE, "oak"), (TWO, "")):
        known = Capability("m", [DEVICE], [], "host", True, 0.0, name=name)
        await world.board(peer).publish(known)
    gone = Capability("m", [DEVICE], [], "host", True, 0.0, leaving=True)
    await world.board(peer_named("gone")).publish(gone)
    stage = StageAdvert(0, 6, MEMBERS, 0.002, 512, 1)
    await world.board(ONE).publish(Advert("m", [stage], 3))
    await world.board(ONE).publish(Lease(3, time.time() + 10))
    await world.board(TWO).publish(Lease(9, time.time() - 1))
    return Links(world.board(ME), world.channel(ME))


async def offer(world: MemoryWorld, holder: str, term: int, **changes: Any) -> None:
    """Let a peer announce and hold a plan."""
    document = {"plan": PLAN.to_json(), "term": term, "planner": holder, "model": "m"}
    data = json.dumps(document).encode()
    announced = changes.get("digest", hashlib.sha256(data).hexdigest())

    async def answer(_peer: str, payload: bytes) -> bytes:
        assert payload.decode() == announced
        return bytes(changes.get("says", data))

    if changes.get("is_there", True):
        channel = world.channel(holder)
        channel.listen(lambda peer, message: None, lambda peer, reason: None)
        channel.answer("plan", answer)
    await world.board(holder).publish(PlanRef(term, 0, announced, len(data)))


def test_the_holder_of_the_live_lease_plans_and_the_leaving_are_not_shown() -> None:
    async def story() -> None:
        links = await fill(MemoryWorld())
        status = await read_status(links.board, INVITE)
        assert (status.planner, status.term) == (ONE, 3)
        assert set(status.capabilities) == {ONE, TWO}
        assert status.name_of(ONE) == "oak"
        assert status.name_of(TWO) == TWO[-8:]
        values = json.loads(json.dumps(status.to_json()))
        assert {peer["peer"] for peer in values["peers"]} == {ONE, TWO}
        assert values["stages"][0]["members"][1]["kv"] == 1

    asyncio.run(story())


def test_each_link_is_named_with_how_it_goes_and_why_it_is_not_direct(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        inside = Capability("m", [DEVICE], [], "host", reachable=False, since=0.0)
        for peer, other, seconds in ((ONE, TWO, 0.04), (TWO, ONE, 0.03)):
            ways = [Link(other, seconds, 1e6 / seconds, RELAYED), Link(ME, 0.01, 1e6)]
            await world.board(peer).publish(replace(inside, links=ways))
        await world.board(ME).publish(replace(inside, reachable=True, name="ash"))
        relay = peer_named("relay")
        await world.board(relay).publish(Relay(["/ip4/203.0.113.7/tcp/1"], 0.0, name="elm"))
        status = await read_status(links.board, INVITE)
        worst, *others = status.links()
        assert (worst.peers, worst.kind) == (tuple(sorted((ONE, TWO))), RELAYED)
        assert (worst.round_trip_seconds, worst.bytes_per_second) == (0.04, 1e6 / 0.04)
        assert worst.why == "one public host only: hole punching needs four public peers"
        assert [(link.kind, link.why) for link in others] == [("direct", ""), ("direct", "")]
        values = json.loads(json.dumps(status.to_json()))
        assert values["links"][0]["why"] == worst.why
        assert values["relays"][0]["name"] == "elm"
        show_links(Terminal(), status)
        relay_line, header, first, *_ = capsys.readouterr().out.splitlines()
        assert relay_line.startswith("relay: elm")
        assert header.split("  ")[0] == "link"
        assert first.split("  ")[1:3] == ["relayed", "40.0 ms"]
        assert first.endswith(f"25 MB/s     {worst.why}")

    asyncio.run(story())


def test_a_link_that_nobody_could_measure_is_shown_without_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inside = Capability("m", [DEVICE], [assumed_relayed(TWO)], "host", False, 0.0, name="oak")
    peers = {ONE: inside, TWO: replace(inside, links=[assumed_relayed(ONE)], name="ash")}
    status = SwarmStatus("forest", "tiny", peers, (), "", 0)
    show_links(Terminal(), status)
    assert "relayed  not measured  -" in capsys.readouterr().out
    peers[TWO] = replace(peers[TWO], links=[Link(ONE, 0.09, 1e6, RELAYED)])
    assert status.links()[0].is_measured


def test_of_many_links_the_farthest_from_direct_are_shown() -> None:
    kinds = (DIRECT, PUNCHED, "by pigeon", RELAYED)
    peers = [peer_named(str(at)) for at in range(len(kinds))]
    links = [Link(peer, 0.01, 1e6, kind) for peer, kind in zip(peers, kinds, strict=True)]
    hub = Capability("m", [DEVICE], links, "host", True, 0.0)
    known = {ME: hub} | dict.fromkeys(peers, replace(hub, links=[]))
    status = SwarmStatus("forest", "tiny", known, (), "", 0)
    assert [link.kind for link in status.links()] == list(reversed(kinds))


def test_the_plan_of_the_lease_holder_is_fetched_and_nobody_elses() -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        with pytest.raises(NoRoute, match="no plan yet"):
            await read_plan(links.board, links.channel, trust_of(INVITE))
        await offer(world, TWO, 2**40)  # its lease is over
        with pytest.raises(NoRoute, match="no plan yet"):
            await read_plan(links.board, links.channel, trust_of(INVITE))
        await offer(world, ONE, 3)
        live = await read_plan(links.board, links.channel, trust_of(INVITE))
        assert (live.term, live.planner, live.plan) == (3, ONE, PLAN)
        world.kill(ONE)
        with pytest.raises(NoRoute, match="cannot be had"):
            await read_plan(links.board, links.channel, trust_of(INVITE))

    asyncio.run(story())


def test_in_an_open_swarm_only_a_proven_planner_counts_whatever_the_terms() -> None:
    async def story() -> None:
        founder = Identity.throwaway()
        invite = Invite((), swarm_id("forest", founder.peer), "swarm-tiny")
        world, until = MemoryWorld(), time.time() + 10
        links = Links(world.board(ME), world.channel(ME))
        proof = founder_proof(invite.swarm, founder.peer)
        await world.board(TWO).publish(Lease(900, until, proof))  # a proof of somebody else
        await offer(world, TWO, 900)
        assert (await read_status(links.board, invite)).planner == ""
        with pytest.raises(NoRoute, match="no plan yet"):
            await read_plan(links.board, links.channel, trust_of(invite))
        await world.board(founder.peer).publish(Lease(3, until, proof))
        await offer(world, founder.peer, 3)
        assert (await read_status(links.board, invite)).planner == founder.peer
        assert (await read_plan(links.board, links.channel, trust_of(invite))).term == 3

    asyncio.run(story())


def test_a_plan_beyond_the_term_of_its_lease_does_not_count() -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        await offer(world, ONE, 4)
        with pytest.raises(NoRoute, match="no plan yet"):
            await read_plan(links.board, links.channel, trust_of(INVITE))

    asyncio.run(story())


def test_of_two_lease_holders_the_better_ranked_that_answers_counts() -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        era = int(time.time() // ERA_SECONDS)
        best, other = rank(INVITE.swarm, era, [ONE, TWO])
        for peer, term in ((best, 3), (other, 50)):
            await world.board(peer).publish(Lease(term, time.time() + 10))
            await offer(world, peer, term)
        assert (await read_plan(links.board, links.channel, trust_of(INVITE))).planner == best
        world.kill(best)
        assert (await read_plan(links.board, links.channel, trust_of(INVITE))).planner == other

    asyncio.run(story())


HOSTILE_DOCUMENTS = {
    "an end beyond all numbers": b'{"term": 3, "planner": "%s", "plan": {"pipelines": [{"stages": '
    b'[{"start": 0, "end": 1e999, "shards": [{"device": "a/0", "kv": 1, "mlp": 1}]}]}]}}',
    "an end that no machine can hold": b'{"term": 3, "planner": "%s", "plan": {"pipelines": '
    b'[{"stages": [{"start": 0, "end": 1' + b"0" * 90 + b', "shards": [{"device": "a/0", "kv": 1,'
    b' "mlp": 1}]}]}]}}',
    "deep nesting": b"[" * 100_000,
    "deep nesting within": b'{"term": 3, "planner": "%s", "plan": ' + b'{"a":' * 50_000,
    "a list for a plan": b'{"term": 3, "planner": "%s", "plan": []}',
    "a number for stages": b'{"term": 3, "planner": "%s", "plan": {"pipelines": [{"stages": 1}]}}',
    "words that cannot be printed": b'{"term": 3, "planner": "%s", "reason": "\\ud800", "plan": '
    b'{"pipelines": []}}',
    "a term of its own": b'{"term": 1e999, "planner": "%s", "plan": {"pipelines": []}}',
    "another term": b'{"term": 4, "planner": "%s", "plan": {"pipelines": []}}',
    "nobody's plan": b'{"term": 3, "plan": {"pipelines": []}}',
}


@pytest.mark.parametrize("says", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS)
def test_a_plan_document_of_a_liar_is_refused_in_one_sentence(says: bytes) -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        data = says.replace(b"%s", ONE.encode())
        await offer(world, ONE, 3, says=data, digest=hashlib.sha256(data).hexdigest())
        with pytest.raises(NoRoute, match="cannot be had"):
            await read_plan(links.board, links.channel, trust_of(INVITE))

    asyncio.run(story())


def plan_over(*devices: str) -> LivePlan:
    shards = tuple(Shard(device, 1, 1) for device in devices)
    pipelines = (Pipeline((Stage(0, 6, shards),)),) if shards else ()
    return LivePlan(Plan(pipelines), 3, ONE, "" if shards else "the model needs 2 GB more", {})


@pytest.mark.parametrize(
    ("planner", "live", "why"),
    [
        ("", None, "no planner is elected yet"),
        (ONE, None, "the planner has made no plan yet"),
        (ONE, plan_over(), "the model needs 2 GB more"),
        (ONE, plan_over(f"{ONE}/0"), "it is a spare: the plan does not need it"),
        (ONE, plan_over(f"{ONE}/0", f"{TWO}/0"), "it loads layers 0-5"),
    ],
)
def test_each_idle_device_has_its_reason(planner: str, live: LivePlan | None, why: str) -> None:
    known = Capability("m", [DEVICE], [], "host", True, 0.0)
    stage = StageAdvert(0, 6, [Member(ONE, 0, 2, 1)], 0.002, 512, 1)
    status = SwarmStatus("s", "m", {ONE: known, TWO: known}, (stage,), planner, 3)
    assert why_idle(status, live) == {f"{TWO}/0": why}


CUT_OFF = "model.safetensors is cut off"
TROUBLE = Trouble(0, 0, 6, 3, f"{CUT_OFF}.\n")


@pytest.mark.parametrize(
    ("trouble", "left_out", "why"),
    [
        (TROUBLE, None, rf"it cannot load layers 0-5: {CUT_OFF}.\n (tried 3 times)"),
        (replace(TROUBLE, failures=1, cause="no room"), None, "it cannot load layers 0-5: no room"),
        (None, {TWO: "too slow"}, "it is left out of the plan for a while: too slow"),
        (None, {TWO: 3}, "it is a spare: the plan does not need it"),
        (None, [TWO], "it is a spare: the plan does not need it"),
    ],
)
def test_a_device_that_does_not_do_its_part_is_named_with_the_cause(
    trouble: Trouble | None, left_out: object, why: str
) -> None:
    known = Capability("m", [DEVICE], [], "host", True, 0.0)
    stage = StageAdvert(0, 6, [Member(ONE, 0, 2, 1)], 0.002, 512, 1)
    adverts = {ONE: Advert("m", [stage], 3), TWO: Advert("m", [], 3)}
    if trouble:
        adverts[TWO] = replace(adverts[TWO], troubles=[trouble])
    live = replace(plan_over(f"{ONE}/0"), document={"left_out": left_out})

    async def story() -> None:
        world = MemoryWorld()
        for peer, advert in adverts.items():
            await world.board(peer).publish(known)
            await world.board(peer).publish(advert)
        status = replace(await read_status(world.board(ME), INVITE), planner=ONE)
        assert why_idle(status, live) == {f"{TWO}/0": why}
        told = status.to_json()["troubles"]
        assert [each["peer"] for each in told] == ([TWO] if trouble else [])

    asyncio.run(story())


def test_a_device_that_serves_on_while_the_plan_leaves_it_out_is_named_too() -> None:
    known = Capability("m", [DEVICE], [], "host", True, 0.0)
    stage = StageAdvert(0, 6, [Member(ONE, 0, 2, 1)], 0.002, 512, 1)
    status = SwarmStatus("s", "m", {ONE: known}, (stage,), TWO, 3)
    live = replace(plan_over(f"{TWO}/0"), document={"left_out": {ONE: "far slower"}})
    why = "it is left out of the plan for a while: far slower"
    assert why_idle(status, live) == {f"{ONE}/0": why}


def test_the_places_of_a_plan_are_those_of_whoever_leads_a_stage() -> None:
    one, two, three = (Shard(f"{peer}/0", 1, 1) for peer in ("one", "two", "three"))
    holders = ((two,), (three,))
    stages = (Stage(0, 4, (one,)), Stage(4, 6, (two, three), holders))
    live = LivePlan(Plan((Pipeline(stages),)), 3, ONE, "", {})
    assert live.places() == {("one", 0, 4), ("two", 4, 6), ("three", 4, 6)}


def test_an_empty_board_is_looked_at_again_before_its_swarm_is_said_to_be_over() -> None:
    async def story() -> None:
        world = MemoryWorld()
        with pytest.raises(BadInvite, match="know nothing"):
            await find_status(world.board(ME), INVITE, 0.0)
        looking = asyncio.create_task(find_status(world.board(ME), INVITE, 1.0))
        await asyncio.sleep(0)
        await fill(world)
        assert set((await looking).capabilities) == {ONE, TWO}

    asyncio.run(story())


@pytest.mark.parametrize("says", [b"", b"{}", b"[]", b"not json"])
def test_a_plan_that_is_not_the_announced_one_is_refused(says: bytes) -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        await offer(world, ONE, 3, says=says)
        with pytest.raises(NoRoute, match="not the one that was announced"):
            await read_plan(links.board, links.channel, trust_of(INVITE))

    asyncio.run(story())


def test_tables_are_plain_text_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        world = MemoryWorld()
        links = await fill(world)
        await offer(world, ONE, 3)
        status, live = (
            await read_status(links.board, INVITE),
            await read_plan(links.board, links.channel, trust_of(INVITE)),
        )
        terminal = Terminal()
        for show in (show_planner, show_peers, show_stages):
            show(terminal, status)
        show_plan(terminal, live, status, lambda plan, names: f"PICTURE {sorted(names.values())}")
        show_plan_table(terminal, live, status)
        terminal.line(route_line(status.stages, status))

    asyncio.run(story())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"planner: oak ({ONE[-8:]}), term 3"
    assert any("oak" in line and "2 MB" in line and "0-5" in line for line in lines)
    assert any("1:1" in line and "512" in line for line in lines)
    assert any(line.startswith("PICTURE") for line in lines)
    assert lines[-1] == f"0-5 oak+{TWO[-8:]}"


def test_the_table_says_how_each_peer_is_reached_and_why_one_is_not() -> None:
    home = replace(Capability("m", [DEVICE], [], "h", False, 0.0), home="a", relays=["relay"])
    peers = {
        ONE: replace(home, reachable=True, host="o"),
        TWO: home,
        ME: replace(home, host="i", home="b", links=[Link(TWO, 0.1, 1e6, "punched")]),
        peer_named("far"): replace(home, host="f", home="c", relays=[]),
    }
    status = SwarmStatus("forest", "tiny", peers, (), "", 0)
    expected = ["direct", "relayed (punched for 1)", "relayed (punched for 1)", "nobody (no relay)"]
    assert list(status.ways().values()) == expected
    why = why_idle(status, None)
    assert why[f"{peer_named('far')}/0"] == "nobody can reach it (no relay)"
