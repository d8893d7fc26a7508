"""Four real nodes, a real DHT, real streams: the tokens of the whole model, whatever happens.

The tests run in this order, since the later ones take nodes away; they share one swarm if pytest
keeps the tests of a file in one process (--dist loadfile).
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from client.generation import Generation
from client.network import Links, open_links
from swarm.invites import Invite
from swarm.records import Advert, Capability, Lease
from tests.whole.conftest import SPARE, Swarm
from tests.whole.hostile import be_hostile
from tests.whole.reference_model import expected, text_of
from tests.whole.swarms import NodeProcess, wait_until

pytestmark = pytest.mark.nodes

STORY = "Once upon a time"
LONG = "The fox asked the owl about the river and the moon. " * 12
PROMPTS = {
    STORY: 24,
    "A": 3,
    "The old owl said: ": 17,
    LONG: 9,
    "Zwölf Boxkämpfer — 12 🦊": 12,
    "1 2 3 4 5 6 7 8": 30,
    "Why is the sky": 1,
    "\n\n": 11,
}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.8, "seed": 11},
    {"temperature": 1.3, "top_k": 12, "seed": 5},
    {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.2, "seed": 3},
    {"temperature": 0.9, "min_p": 0.05, "seed": 42},
]


@pytest.fixture(scope="module")
def links(swarm: Swarm) -> Iterator[Links]:
    """A board and a channel of a stranger's own."""
    with swarm.loop_thread.hold(open_links(Invite.parse(swarm.invite))) as links:
        links.channel.listen(lambda _peer, _message: None, lambda _peer, _reason: None)
        yield links


def ask(swarm: Swarm, prompt: str, max_tokens: int, **options: Any) -> Generation:
    return swarm.loop_thread.run(swarm.client.generate(prompt, max_tokens=max_tokens, **options))


# ---------------------------------------------------------------- the plan


def test_unlike_nodes_serve_unlike_stages_and_one_uneven_pair(swarm: Swarm) -> None:
    route = ask(swarm, STORY, 1).route
    assert [(stage.start, stage.end) for stage in route] in (
        [(0, 2), (2, 4), (4, 8)],
        [(0, 4), (4, 6), (6, 8)],
    )
    shares = [sorted((member.kv, member.mlp) for member in stage.members) for stage in route]
    assert shares[1] == [(3, 3), (5, 5)]
    names = [{swarm.node_of(m.peer).part.name for m in stage.members} for stage in route]
    assert names[1] == {"five", "three"}
    assert {"large"} in names


def test_every_node_tells_its_story_in_ten_lines(swarm: Swarm) -> None:
    for node in swarm.nodes.started:
        words = [line.partition(":")[0] for line in node.lines]
        assert len(words) <= 10, node.lines
        assert words[0] == "node"
        assert words[-1] == "ready"
        assert {"offer", "plan"} <= set(words)
    assert "are missing" in swarm.nodes.started[0].line("waiting:")


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("prompt", [STORY, LONG], ids=["short", "long"])
def test_greedy_tokens_are_those_of_the_whole_model(swarm: Swarm, prompt: str) -> None:
    generation = ask(swarm, prompt, 40)
    assert list(generation.token_ids) == expected(prompt, 40)
    assert generation.text == text_of(generation.token_ids)
    assert generation.replays == 0
    assert [(t.start, t.end) for t in generation.timings] == [
        (stage.start, stage.end) for stage in generation.route
    ]


def test_a_seed_gives_the_tokens_that_it_gives_to_generate(swarm: Swarm) -> None:
    for options in SAMPLINGS:
        generation = ask(swarm, STORY, 16, **options)
        assert list(generation.token_ids) == expected(STORY, 16, **options), options


def test_eight_requests_at_once_get_each_its_own_tokens(swarm: Swarm) -> None:
    async def all_at_once() -> list[Generation]:
        return await asyncio.gather(
            *(swarm.client.generate(p, max_tokens=count) for p, count in PROMPTS.items())
        )

    generations = swarm.loop_thread.run(all_at_once())
    for (prompt, count), generation in zip(PROMPTS.items(), generations, strict=True):
        assert list(generation.token_ids) == expected(prompt, count), prompt


def test_a_stop_string_ends_the_answer(swarm: Swarm) -> None:
    whole = text_of(expected(STORY, 40))
    word = whole.split()[6]
    generation = ask(swarm, STORY, 40, stop=word)
    assert generation.finish_reason == "stop"
    assert word not in generation.text
    assert whole.startswith(generation.text)


# ---------------------------------------------------------------- bad clients


def test_malformed_clients_do_not_harm_the_swarm(swarm: Swarm, links: Links) -> None:
    hops = [[s.members[0].peer, s.start, s.end] for s in ask(swarm, STORY, 1).route]

    async def beside() -> list[Generation]:
        asked = [asyncio.create_task(swarm.client.generate(STORY, max_tokens=32)) for _ in "ab"]
        await be_hostile(links.channel, hops)
        return [await each for each in asked]

    for generation in swarm.loop_thread.run(beside()):
        assert list(generation.token_ids) == expected(STORY, 32)
        assert generation.replays == 0
    assert list(ask(swarm, STORY, 12).token_ids) == expected(STORY, 12)
    for node in swarm.nodes.started:
        assert node.is_alive
        assert [line for line in node.lines if line.startswith(("lost:", "Traceback"))] == []


# ---------------------------------------------------------------- losses


def leases_of(swarm: Swarm, links: Links) -> dict[str, Lease]:
    """The live leases, by peer."""
    found = swarm.loop_thread.run(links.board.read(Lease))
    return {peer: lease for peer, lease in found.items() if lease.until > time.time()}


def replicas(swarm: Swarm, count: int) -> list[NodeProcess]:
    """Living nodes that hold the whole model, so many at least, once clients may route over them.

    What is missing is started at once, since every start costs seconds.
    """
    alive = [node for node in swarm.nodes.started if node.is_alive]
    near = Invite.parse(alive[0].remembered_invite())  # the host, who printed one, may be gone
    invite = replace(near, ticket=Invite.parse(swarm.invite).ticket).encode()
    found = [node for node in alive if node.part.name.startswith(SPARE.name)]
    for _ in range(len(found), count):
        part = replace(SPARE, name=f"{SPARE.name} {len(swarm.nodes.started)}")
        found.append(swarm.nodes.start(part, "--join", invite))
    for node in found:
        node.line("ready:")
    return found


def stream_while(swarm: Swarm, act_at: int, act: Callable[[], None], max_tokens: int) -> Generation:
    """Stream a long answer and call `act` in the middle of it."""

    async def story() -> Generation:
        async with swarm.client.stream(STORY, max_tokens=max_tokens) as pieces:
            count = 0
            async for _ in pieces:
                count += 1
                if count == act_at:
                    await asyncio.to_thread(act)
            return pieces.generation

    return swarm.loop_thread.run(story())


def peers_in_use(swarm: Swarm) -> Sequence[str]:
    """Who leads the stages of the one answer that is under way: the next may go elsewhere."""
    (session,) = swarm.client._sessions._router._sessions.values()
    assert session.last_route is not None
    return session.last_route.leaders


def test_a_lost_planner_is_followed_within_fifteen_seconds_and_answers_go_on(
    swarm: Swarm, links: Links
) -> None:
    replicas(swarm, 2)  # the second one for the next loss
    leases = leases_of(swarm, links)
    planner = max(leases, key=lambda peer: leases[peer].term)
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        swarm.node_of(planner).kill()
        killed = time.monotonic()

    generation = stream_while(swarm, 10, kill, 300)
    assert list(generation.token_ids) == expected(STORY, 300)

    def successors() -> list[str]:
        now = leases_of(swarm, links)
        return [p for p, each in now.items() if each.term > leases[planner].term and p != planner]

    wait_until(successors, 15.0 - (time.monotonic() - killed))
    assert len(successors()) == 1


def test_a_killed_stage_with_a_replica_costs_a_replay_and_no_token(
    swarm: Swarm, links: Links
) -> None:
    replicas(swarm, 1)
    victims: list[NodeProcess] = []

    def kill() -> None:
        victims.append(swarm.node_of(peers_in_use(swarm)[0]))
        victims[0].kill()

    generation = stream_while(swarm, 10, kill, 300)
    victim = victims[0]
    assert generation.replays >= 1
    members = {member.peer for stage in generation.route for member in stage.members}
    assert victim not in map(swarm.node_of, members)
    assert list(generation.token_ids) == expected(STORY, 300)
    wait_until(lambda: not victim.orphans(), 5.0, lambda: str(victim.orphans()))


# ---------------------------------------------------------------- leaving


def test_an_interrupted_node_leaves_within_five_seconds_and_leaves_nothing_behind(
    swarm: Swarm, links: Links
) -> None:
    staying = replicas(swarm, 1)[0]
    leaver = next(n for n in swarm.nodes.started if n.is_alive and n is not staying)
    code, seconds = leaver.interrupt()
    assert (code, seconds < 5.0) == (0, True), leaver.lines
    wait_until(lambda: not leaver.orphans(), 2.0, lambda: str(leaver.orphans()))
    assert leaver.lines[-1].startswith("left:")
    tail = leaver.peer_tail
    adverts = swarm.loop_thread.run(links.board.read(Advert))
    peers = swarm.loop_thread.run(links.board.read(Capability))
    assert all(a.leaving or not a.stages for p, a in adverts.items() if p.endswith(tail))
    assert all(c.leaving for p, c in peers.items() if p.endswith(tail))
    assert list(ask(swarm, STORY, 12).token_ids) == expected(STORY, 12)


def test_no_killed_node_left_a_process_behind(swarm: Swarm) -> None:
    gone = [node for node in swarm.nodes.started if not node.is_alive]
    wait_until(lambda: not any(node.orphans() for node in gone), 5.0)
