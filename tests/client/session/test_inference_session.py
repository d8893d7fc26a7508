"""Sessions against scripted stages: order, loss, replay, fences, relays, patience."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from client.generation import StageTiming
from client.routing.route_finder import RouteFinder
from client.session.deadlines import Timeouts
from client.session.inbox import MOST_MESSAGES
from swarm.errors import Deadline, NoRoute, PeerLost, PeerRefused
from swarm.records import Advert, Member, StageAdvert
from swarm.testing.memory_network import peer_named
from swarm.wire.messages import (
    CHUNK_CAP,
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Step,
    Token,
)
from swarm.wire.token_ids import ids_of_bytes
from tests.client.conftest import Story
from tests.client.scripted import (
    LAYERS,
    QUICK,
    SPEC,
    Hook,
    ScriptedStage,
    ScriptedSwarm,
    continuation,
    until,
)

PROMPT = [10, 20, 30]
Run = Callable[[Story], None]


async def pair(swarm: ScriptedSwarm) -> tuple[ScriptedStage, ScriptedStage]:
    """Two stages that cover the model."""
    return await swarm.stage("first", 0, 4), await swarm.stage("last", 4, LAYERS)


def test_tokens_come_in_order_through_unequal_stages(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        session = swarm.session(PROMPT, max_tokens=9)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 9)
        assert session.transcript.finish == "length"
        assert session.replays == 0
        await until(lambda: first.heard_kinds()[-1] == last.heard_kinds()[-1] == "Close")
        spent = 0.009, 0.018, 0.027  # of nine tokens: queue, compute, network
        timings = StageTiming(0, 4, *spent), StageTiming(4, LAYERS, *spent)
        assert session.stage_times.timings() == timings

    in_swarm(story)


def test_open_names_the_route_and_sampling_goes_to_the_last_stage_only(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        await swarm.session(PROMPT, max_tokens=2, temperature=0.5, seed=3).run()
        opens = [next(m for m in stage.heard if isinstance(m, Open)) for stage in (first, last)]
        assert [opened.stage for opened in opens] == [0, 1]
        assert opens[0].route == [[first.peer, 0, 4], [last.peer, 4, LAYERS]]
        assert opens[0].sampling == {}
        assert opens[1].sampling == {"max_tokens": 2, "temperature": 0.5, "seed": 3}
        assert {opened.capacity for opened in opens} == {len(PROMPT) + 2}
        assert ids_of_bytes(opens[1].body) == PROMPT

    in_swarm(story)


def test_between_trusted_ends_a_stage_learns_no_id_of_the_prompt(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        names = (("first", 0, 2), ("middle", 2, 4), ("last", 4, LAYERS))
        first, middle, last = [await swarm.stage(*each) for each in names]
        swarm.route_finder.trusted_ends = frozenset({first.peer, last.peer})
        await swarm.session(PROMPT, max_tokens=9).run()
        assert swarm.notes.tokens == continuation(PROMPT, 9)
        opens = [next(m for m in stage.heard if isinstance(m, Open)) for stage in (first, last)]
        assert [ids_of_bytes(opened.body) for opened in opens] == [PROMPT, PROMPT]
        (blinded,) = (m for m in middle.heard if isinstance(m, Open))
        assert len(ids_of_bytes(blinded.body)) == len(PROMPT)
        assert ids_of_bytes(blinded.body) != PROMPT

    in_swarm(story)


def test_what_a_stage_between_trusted_ends_says_it_holds_is_computed_anew(in_swarm: Run) -> None:
    def claims(stage: ScriptedStage, peer: str, message: Message) -> bool:
        if isinstance(message, Open):
            stage.opened[message.session], stage.ids[message.session] = message, []
            stage.clients[message.session] = peer
            reply = Opened(message.session, message.epoch, message.key, message.stage, held=2)
            stage.spawn(stage.channel.send(peer, reply))
        return isinstance(message, Open)

    async def story(swarm: ScriptedSwarm) -> None:
        stages = await pair(swarm)
        for stage in stages:
            stage.hook = claims
        swarm.route_finder.trusted_ends = frozenset(stage.peer for stage in stages)
        await swarm.session(PROMPT, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_one_peer_may_lead_every_stage(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("only", 0, LAYERS)
        await swarm.session(PROMPT, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_long_prompts_go_in_chunks_and_only_the_last_is_sampled(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, _ = await pair(swarm)
        prompt = [1] * (2 * CHUNK_CAP + 5)
        await swarm.session(prompt, max_tokens=1).run()
        steps = [message for message in first.heard if isinstance(message, Step)]
        assert [(s.position, s.tokens, s.sample) for s in steps] == [
            (0, CHUNK_CAP, False),
            (CHUNK_CAP, CHUNK_CAP, False),
            (2 * CHUNK_CAP, 5, True),
        ]

    in_swarm(story)


def test_stop_ids_end_the_session_and_belong_to_the_answer(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        _, last = await pair(swarm)
        expected = continuation(PROMPT, 8)
        session = swarm.session(PROMPT, max_tokens=8, stop_ids=(expected[2],))
        await session.run()
        first_stop = expected.index(expected[2])
        assert swarm.notes.tokens == expected[: first_stop + 1]
        assert session.transcript.finish == "stop"
        await until(lambda: "Close" in last.heard_kinds())

    in_swarm(story)


def test_the_reader_can_end_the_session(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await pair(swarm)
        swarm.notes.stop_at = 3
        session = swarm.session(PROMPT, max_tokens=50)
        await session.run()
        assert session.transcript.generated == continuation(PROMPT, 3)
        assert session.transcript.finish == "stop"

    in_swarm(story)


def test_closing_the_iterator_frees_the_session_at_every_stage(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        session = swarm.session(PROMPT, max_tokens=50)
        async with aclosing(session.tokens()) as tokens:
            assert [await anext(tokens), await anext(tokens)] == continuation(PROMPT, 2)
        assert session.transcript.finish == ""
        await until(lambda: all("Cancel" in stage.heard_kinds() for stage in (first, last)))
        await until(lambda: not first.opened and not last.opened)

    in_swarm(story)


def test_repeated_late_and_foreign_tokens_change_nothing(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)

        def meddle(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position > len(PROMPT):
                common = (message.session, message.epoch)
                at = message.position
                for token in (
                    Token(*common, message.key, len(PROMPT), [1]),  # seen before
                    Token(*common, b"0" * 16, at + 1, [2]),  # wrong key
                    Token(message.session, message.epoch + 1, message.key, at + 1, [3]),  # epoch
                ):
                    stage.spawn(stage.channel.send(stage.clients[message.session], token))
            return False

        last.hook = meddle
        first.hook = lambda stage, peer, message: _forge(stage, message)
        await swarm.session(PROMPT, max_tokens=6).run()
        assert swarm.notes.tokens == continuation(PROMPT, 6)

    def _forge(stage: ScriptedStage, message: Message) -> bool:
        """Tokens of a stage that is not the last one do not count."""
        if isinstance(message, Step):
            common = (message.session, message.epoch, message.key)
            token = Token(*common, message.position + message.tokens, [7])
            stage.spawn(stage.channel.send(stage.clients[message.session], token))
        return False

    in_swarm(story)


IMPOSSIBLE_TOKENS = {
    "an id beyond the vocabulary": {"ids": [SPEC.vocab]},
    "an id beyond any integer of 32 bits": {"ids": [2**62 - 1]},
    "a position before the answer": {"position": 0},
    "a position behind the answer": {"position": 10**6},
    "more ids than were guessed": {"ids": [97, 98, 99], "drafted": 1},
    "more guesses than can be": {"drafted": 2**40},
    "more hops than stages": {"hops": [[1, 2, 3]] * 3},
    "a hop with other figures": {"hops": [[1, 2, 3, 4]]},
    "a hop of years": {"hops": [[2**61, 2, 3]]},
    "an end of no known kind": {"finish": "because"},
    "an end for length before it": {"finish": "length"},
    "a stop that nobody asked for": {"finish": "stop"},
    "a body": {"body": b"x"},
}


@pytest.mark.parametrize("facts", IMPOSSIBLE_TOKENS.values(), ids=IMPOSSIBLE_TOKENS)
def test_a_token_that_cannot_be_costs_its_sender_the_session(
    in_swarm: Run, facts: dict[str, Any]
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        liar = await swarm.stage("liar", 4, LAYERS)
        honest = await swarm.stage("honest", 4, LAYERS, step_seconds=1.0)

        def lie(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                values: dict[str, Any] = {"position": len(PROMPT), "ids": [97]} | facts
                token = Token(message.session, message.epoch, message.key, **values)
                stage.spawn(stage.channel.send(stage.clients[message.session], token))
            return isinstance(message, Step)

        liar.hook = lie
        session = swarm.session(PROMPT, max_tokens=4)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 4)
        assert session.replays == 1
        assert "Step" in honest.heard_kinds()

    in_swarm(story)


IMPOSSIBLE_STEPS = {
    "a stage that is not there": {"stage": 2},
    "no row": {"tokens": 0},
    "more rows than a chunk": {"tokens": CHUNK_CAP + 1},
    "more bytes than rows": {"body": b"0" * (4 * SPEC.hidden + 5)},
    "a dtype that does not exist": {"dtype": "f" * 10_000},
    "more guesses than can be": {"drafts": [1] * 500},
    "more hops than stages": {"hops": [[1, 2, 3]] * 500},
}


@pytest.mark.parametrize("facts", IMPOSSIBLE_STEPS.values(), ids=IMPOSSIBLE_STEPS)
def test_a_step_to_relay_that_cannot_be_is_not_relayed(
    in_swarm: Run, facts: dict[str, Any]
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        liar = await swarm.stage("liar", 0, 4)
        await swarm.stage("honest", 0, 4, step_seconds=1.0)
        last = await swarm.stage("last", 4, LAYERS)

        def lie(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                common = (message.session, message.epoch, message.key)
                values: dict[str, Any] = {"stage": 1, "position": 0, "tokens": 1}
                values |= {"sample": False, "dtype": "f32"} | facts
                step = Step(*common, **values)
                stage.spawn(stage.channel.send(stage.clients[message.session], step))
            return isinstance(message, Step)

        liar.hook = lie
        session = swarm.session(PROMPT, max_tokens=4)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 4)
        assert not [m for m in last.heard if isinstance(m, Step) and m.epoch == 1]

    in_swarm(story)


def test_whoever_floods_a_session_is_refused_and_memory_stays_bounded(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        liar = await swarm.stage("liar", 0, LAYERS)
        await swarm.stage("honest", 0, LAYERS, step_seconds=1.0)

        def flood(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                opened = Opened(message.session, message.epoch, message.key, 1)
                for _ in range(2 * MOST_MESSAGES):
                    swarm.router._receive(stage.peer, opened)
                assert session._epoch is not None
                assert session._epoch.inbox._waiting.qsize() <= MOST_MESSAGES
            return isinstance(message, Open)

        liar.hook = flood
        session = swarm.session(PROMPT, max_tokens=4)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 4)
        assert session.replays == 1

    in_swarm(story)


def test_a_stage_may_not_blame_peers_outside_the_route(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        liar = await swarm.stage("liar", 0, LAYERS)
        honest = await swarm.stage("honest", 0, LAYERS, step_seconds=1.0)

        def blame(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                common = (message.session, message.epoch, "stage_lost", "gone")
                fail = Fail(*common, peer=honest.peer)
                stage.spawn(stage.channel.send(stage.clients[message.session], fail))
            return isinstance(message, Step)

        liar.hook = blame
        session = swarm.session(PROMPT, max_tokens=4)
        await session.run()
        assert session.replays == 1
        assert "Step" in honest.heard_kinds()

    in_swarm(story)


def test_tokens_that_overtake_each_other_are_put_in_order(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        _, last = await pair(swarm)
        expected = continuation(PROMPT, 3)

        def shuffle(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if not isinstance(message, Step):
                return False
            common = (message.session, message.epoch, message.key)
            at = len(PROMPT)
            for offset in (2, 0, 1):
                finish = "length" if offset == 2 else ""
                token = Token(*common, at + offset, [expected[offset]], finish)
                stage.spawn(stage.channel.send(stage.clients[message.session], token))
            return True

        last.hook = shuffle
        await swarm.session(PROMPT, max_tokens=3).run()
        assert swarm.notes.tokens == expected

    in_swarm(story)


def test_steps_are_relayed_where_stages_cannot_reach_each_other(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        first.hop_unreachable = last.hop_unreachable = True
        await swarm.session(PROMPT, max_tokens=5).run()
        assert swarm.notes.tokens == continuation(PROMPT, 5)

    in_swarm(story)


def test_a_lost_stage_costs_a_replay_and_no_token(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        spare = await swarm.stage("spare", 4, LAYERS, step_seconds=1.0)

        def die_later(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position == len(PROMPT) + 3:
                swarm.world.kill(stage.peer)
            return False

        last.hook = die_later
        session = swarm.session(PROMPT, max_tokens=10)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 10)
        assert session.replays == 1
        replay = next(message for message in spare.heard if isinstance(message, Open))
        assert replay.epoch == 2
        assert replay.generated == 4
        assert ids_of_bytes(replay.body) == PROMPT + continuation(PROMPT, 4)
        assert [m.epoch for m in first.heard if isinstance(m, Open)] == [1, 2]

    in_swarm(story)


def test_a_session_waits_for_a_route_that_appears_later(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        running = asyncio.create_task(swarm.session(PROMPT, max_tokens=4).run())
        await asyncio.sleep(0.1)
        await swarm.stage("last", 4, LAYERS)
        await running
        assert swarm.notes.tokens == continuation(PROMPT, 4)

    in_swarm(story)


def test_no_route_in_time_says_which_layers_are_missing(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        with pytest.raises(NoRoute, match="layers 4-5 of 6"):
            await swarm.session(PROMPT, timeout_seconds=0.2).run()

    in_swarm(story)


@pytest.mark.parametrize("code", ["stage_lost", "unknown_session", "leaving", "internal"])
def test_a_failing_stage_is_replaced(in_swarm: Run, code: str) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        bad = await swarm.stage("bad", 4, LAYERS)
        await swarm.stage("good", 4, LAYERS, step_seconds=1.0)

        def fail(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                failure = Fail(message.session, message.epoch, code, "broken")
                stage.spawn(stage.channel.send(stage.clients[message.session], failure))
            return isinstance(message, Step)

        bad.hook = fail
        await swarm.session(PROMPT, max_tokens=4).run()
        assert swarm.notes.tokens == continuation(PROMPT, 4)
        await until(lambda: "Cancel" in bad.heard_kinds())

    in_swarm(story)


def test_a_leaving_stage_hands_over_without_losing_tokens(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        leaving = await swarm.stage("leaving", 4, LAYERS)
        await swarm.stage("other", 4, LAYERS, step_seconds=1.0)

        def move(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position == len(PROMPT) + 1:
                moved = Moved(message.session, message.epoch)
                stage.spawn(stage.channel.send(stage.clients[message.session], moved))
                return True
            return False

        leaving.hook = move
        session = swarm.session(PROMPT, max_tokens=6)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 6)
        assert session.replays == 1

    in_swarm(story)


def moving_at(position: int) -> Hook:
    """Say MOVED once a step comes to a position, and go on serving."""

    def hook(stage: ScriptedStage, peer: str, message: Message) -> bool:
        if isinstance(message, Step) and message.position == position:
            moved = Moved(message.session, message.epoch)
            stage.spawn(stage.channel.send(stage.clients[message.session], moved))
        return False

    return hook


def test_a_stage_that_leaves_is_used_until_another_has_computed_the_ids(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first = await swarm.stage("first", 0, 4)
        leaving = await swarm.stage("leaving", 4, LAYERS)
        other = await swarm.stage("other", 4, LAYERS, step_seconds=1.0)
        leaving.hook = moving_at(len(PROMPT) + 2)
        async with swarm.client() as client:
            generation = await client.generate(PROMPT, max_tokens=200)
        assert list(generation.token_ids) == continuation(PROMPT, 200)
        assert generation.replays == 1
        warm, moved = (message for message in other.heard if isinstance(message, Open))
        main = next(message for message in leaving.heard if isinstance(message, Open))
        assert (moved.session, moved.epoch) == (main.session, 2)
        assert warm.session != main.session
        assert warm.capacity == len(warm.body) // 4 + 1  # nothing but the ids so far
        assert len(warm.body) < len(moved.body)
        last_step = [message for message in leaving.heard if isinstance(message, Step)][-1]
        assert last_step.position > len(PROMPT) + 2  # it served on
        assert moved.session not in other.opened  # and nothing is left open
        assert not first.opened

    in_swarm(story)


def test_a_stage_that_says_it_leaves_and_falls_silent_costs_no_whole_deadline(
    in_swarm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        leaving = await swarm.stage("leaving", 4, LAYERS)

        def move(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position == len(PROMPT) + 2:
                moved = Moved(message.session, message.epoch)
                stage.spawn(stage.channel.send(stage.clients[message.session], moved))
                return True
            return False

        leaving.hook = move
        blamed: list[str] = []
        monkeypatch.setattr(swarm.route_finder, "failed", lambda them, _: blamed.extend(them))
        patient = replace(QUICK, step_seconds=60.0, moved_seconds=0.1)
        asking = asyncio.create_task(swarm.session(PROMPT, max_tokens=6, timeouts=patient).run())
        await until(lambda: bool(blamed))  # there is no other stage meanwhile
        await swarm.stage("other", 4, LAYERS, step_seconds=1.0)
        await asking
        assert swarm.notes.tokens == continuation(PROMPT, 6)
        assert set(blamed) == {leaving.peer}

    in_swarm(story)


def test_a_peer_that_takes_no_goodbye_holds_nobody_up(
    in_swarm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        leaving = await swarm.stage("leaving", 0, LAYERS)
        other = await swarm.stage("other", 0, LAYERS, step_seconds=1.0)
        send, is_opened = swarm.channel.send, asyncio.Event()

        async def send_slowly(peer: str, message: Message, *, timeout_seconds: float = 5.0) -> None:
            if isinstance(message, Cancel) and peer == leaving.peer:
                await is_opened.wait()
            await send(peer, message, timeout_seconds=timeout_seconds)

        def end(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                fail = Fail(message.session, message.epoch, "leaving")
                stage.spawn(stage.channel.send(stage.clients[message.session], fail))
            return isinstance(message, Step)

        monkeypatch.setattr(swarm.channel, "send", send_slowly)
        leaving.hook = end
        asking = asyncio.create_task(swarm.session(PROMPT, max_tokens=3).run())
        await until(lambda: "Open" in other.heard_kinds())
        is_opened.set()
        await asking
        assert swarm.notes.tokens == continuation(PROMPT, 3)
        assert "Cancel" in leaving.heard_kinds()

    in_swarm(story)


def test_a_fault_that_time_cannot_mend_ends_the_session_soon(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        last = await swarm.stage("last", 4, LAYERS)

        def fail(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                failure = Fail(message.session, message.epoch, "bad_frame", "nonsense")
                stage.spawn(stage.channel.send(peer, failure))
            return isinstance(message, Open)

        last.hook = fail
        with pytest.raises(PeerRefused, match="bad_frame"):
            await swarm.session(PROMPT, timeout_seconds=60).run()
        assert last.heard_kinds().count("Open") == 5

    in_swarm(story)


def test_a_busy_stage_is_asked_again_after_a_while(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        refusals = [0.05, 0.05]

        def busy(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open) and refusals:
                common = (message.session, message.epoch, message.key, message.stage)
                stage.spawn(stage.channel.send(peer, Busy(*common, refusals.pop())))
                return True
            return False

        last.hook = busy
        session = swarm.session(PROMPT, max_tokens=3)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)
        assert session.replays == 0
        assert first.heard_kinds().count("Cancel") == 2, "what it had reserved is freed"

    in_swarm(story)


def test_stages_of_an_earlier_route_do_not_know_the_key_of_the_next(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        earlier = await swarm.stage("earlier", 0, LAYERS)
        later = await swarm.stage("later", 0, LAYERS, step_seconds=1.0)

        def leave(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                stage.spawn(stage.channel.send(peer, Moved(message.session, message.epoch)))
            return isinstance(message, Open)

        earlier.hook = leave
        await swarm.session(PROMPT, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)
        one, other = (
            next(message for message in stage.heard if isinstance(message, Open))
            for stage in (earlier, later)
        )
        assert one.session == other.session
        assert one.key != other.key
        goodbye = next(message for message in earlier.heard if isinstance(message, Cancel))
        assert (goodbye.epoch, goodbye.key) == (one.epoch, one.key)

    in_swarm(story)


def test_another_stage_is_asked_at_once_while_one_is_busy(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        busy = await swarm.stage("busy", 0, LAYERS)
        await swarm.stage("free", 0, LAYERS, step_seconds=1.0)

        def refuse(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                common = (message.session, message.epoch, message.key, message.stage)
                stage.spawn(stage.channel.send(peer, Busy(*common, 3600.0)))
            return isinstance(message, Open)

        busy.hook = refuse
        await swarm.session(PROMPT, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_a_swarm_that_stays_busy_is_reported_as_such(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        only = await swarm.stage("only", 0, LAYERS)

        def busy(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                common = (message.session, message.epoch, message.key, message.stage)
                stage.spawn(stage.channel.send(peer, Busy(*common, 0.05, "full")))
            return isinstance(message, Open)

        only.hook = busy
        with pytest.raises(PeerRefused, match="busy"):
            await swarm.session(PROMPT, timeout_seconds=0.2).run()

    in_swarm(story)


def test_a_stage_that_falls_silent_is_left_after_its_deadline(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        silent = await swarm.stage("silent", 4, LAYERS)
        await swarm.stage("lively", 4, LAYERS, step_seconds=1.0)
        silent.hook = lambda stage, peer, message: isinstance(message, Open)
        session = swarm.session(PROMPT, max_tokens=3)
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)
        assert session.replays == 1

    in_swarm(story)


def test_without_any_progress_the_session_ends_at_its_timeout(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        only = await swarm.stage("only", 0, LAYERS)
        only.hook = lambda stage, peer, message: isinstance(message, Step)
        started = asyncio.get_running_loop().time()
        with pytest.raises(Deadline):
            await swarm.session(PROMPT, timeout_seconds=0.5).run()
        assert 0.4 < asyncio.get_running_loop().time() - started < 1.5

    in_swarm(story)


@pytest.mark.parametrize("stranger", [False, True])
def test_a_request_with_time_left_waits_for_whoever_joins(in_swarm: Run, stranger: bool) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        swarm.route_finder = RouteFinder(
            swarm.world.board(peer_named("client")), SPEC, empty_seconds=0
        )
        last = await swarm.stage("last", 0, LAYERS)

        def lose_all(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position == len(PROMPT) + 2:
                swarm.world.kill(stage.peer)
                swarm.world.records.clear()
            return False

        last.hook = lose_all
        running = asyncio.create_task(swarm.session(PROMPT, max_tokens=6).run())
        await until(lambda: not swarm.world.records)
        if stranger:
            board = swarm.world.board(peer_named("stranger"))
            part = StageAdvert(0, 9, [Member(board.peer, 0, 2, 1)], 0.1, 100, 0)
            await board.publish(Advert("e" * 64, [part], 1))
        await asyncio.sleep(0.3)
        assert not running.done()
        await swarm.stage("newcomer", 0, LAYERS)
        await running
        assert swarm.notes.tokens == continuation(PROMPT, 6)

    in_swarm(story)


def test_a_peer_that_is_busy_for_longer_than_there_is_time_does_not_end_the_wait(
    in_swarm: Run,
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        busy = await swarm.stage("busy", 0, LAYERS)

        def refuse(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                common = (message.session, message.epoch, message.key, message.stage)
                stage.spawn(stage.channel.send(peer, Busy(*common, 1e9)))
            return isinstance(message, Open)

        busy.hook = refuse
        running = asyncio.create_task(swarm.session(PROMPT, max_tokens=3).run())
        await until(lambda: "Cancel" in busy.heard_kinds())
        await asyncio.sleep(0.1)  # in which it looks for a route, and finds the busy one again
        await swarm.stage("newcomer", 0, LAYERS, step_seconds=1.0)
        await running
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_a_hung_stage_costs_one_session_a_moment_and_later_ones_nothing(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        hung = await swarm.stage("hung", 0, LAYERS)
        await swarm.stage("lively", 0, LAYERS, step_seconds=1.0)
        hung.hook = lambda stage, peer, message: True
        timeouts = Timeouts(step_seconds=60, open_seconds=0.1, pause_seconds=0.02)
        first = swarm.session(PROMPT, timeouts=timeouts, timeout_seconds=120, max_tokens=3)
        await first.run()
        assert first.replays == 1
        later = [swarm.session(PROMPT, timeouts=timeouts, max_tokens=3) for _ in range(3)]
        for session in later:
            await session.run()
            assert session.replays == 0
        assert hung.heard_kinds().count("Open") == 1

    in_swarm(story)


def test_a_slow_stage_is_awaited_where_there_is_no_other(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        slow = await swarm.stage("slow", 0, LAYERS)

        def think(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open) and not stage.opened:
                loop = asyncio.get_running_loop()
                stage.opened[message.session] = message
                loop.call_later(0.3, stage.on_message, peer, message)
                return True
            return False

        slow.hook = think
        timeouts = Timeouts(step_seconds=60, open_seconds=0.05, pause_seconds=0.02)
        session = swarm.session(PROMPT, timeouts=timeouts, max_tokens=3)
        await session.run()
        assert session.replays == 0
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_a_far_stage_has_three_round_trips_before_another_is_asked(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("far", 0, LAYERS)
        await swarm.stage("near", 0, LAYERS, step_seconds=1.0)
        for link in ("far", "client"), ("client", "far"):
            swarm.world.link(*map(peer_named, link)).delay_seconds = 0.1
        timeouts = Timeouts(step_seconds=60, open_seconds=0.05, pause_seconds=0.02)
        session = swarm.session(PROMPT, timeouts=timeouts, max_tokens=3)
        await session.run()
        assert session.replays == 0

    in_swarm(story)


def test_who_blames_others_again_and_again_is_left_himself(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        liar = await swarm.stage("liar", 0, 4)
        await swarm.stage("honest", 0, 4, step_seconds=1.0)
        for name in ("x", "y", "z"):
            await swarm.stage(name, 4, LAYERS)

        def blame(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step):
                blamed = stage.opened[message.session].route[1][0]
                fail = Fail(message.session, message.epoch, "stage_lost", "gone", blamed)
                stage.spawn(stage.channel.send(stage.clients[message.session], fail))
            return isinstance(message, Step)

        liar.hook = blame
        session = swarm.session(PROMPT, max_tokens=3)
        await session.run()
        assert session.replays == 2
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_the_deadline_grows_with_the_prompt(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        only = await swarm.stage("only", 0, LAYERS)

        def prefill_slowly(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.sample and message not in slow:
                slow.append(message)
                asyncio.get_running_loop().call_later(0.5, stage.on_message, peer, message)
                return True
            return False

        slow: list[Message] = []
        only.hook = prefill_slowly
        prompt = [1] * (8 * CHUNK_CAP)
        timeouts = Timeouts(step_seconds=0.2, chunk_seconds=0.1, pause_seconds=0.02)
        session = swarm.session(prompt, timeouts=timeouts, timeout_seconds=0.2, max_tokens=1)
        await session.run()
        assert (session.replays, swarm.notes.tokens) == (0, continuation(prompt, 1))
        short = swarm.session(PROMPT, timeouts=timeouts, timeout_seconds=0.2, max_tokens=1)
        with pytest.raises(Deadline):
            await short.run()

    in_swarm(story)


def test_a_route_of_dead_peers_is_given_up(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        only = await swarm.stage("only", 0, LAYERS)
        swarm.world.kill(only.peer)
        with pytest.raises(PeerLost):
            await swarm.session(PROMPT, timeout_seconds=0.2).run()

    in_swarm(story)


def test_a_peer_that_comes_back_is_used_again(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        only = await swarm.stage("only", 0, LAYERS)
        swarm.world.kill(only.peer)
        running = asyncio.create_task(swarm.session(PROMPT, max_tokens=3).run())
        await asyncio.sleep(0.1)
        await swarm.stage("only", 0, LAYERS)
        await running
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


@pytest.mark.parametrize("moment", [Open, Step])
def test_cancelling_frees_every_stage_at_any_moment(in_swarm: Run, moment: type[Message]) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        last.hook = lambda stage, peer, message: isinstance(message, moment)
        running = asyncio.create_task(swarm.session(PROMPT).run())
        await until(lambda: any(isinstance(message, moment) for message in last.heard))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: any(isinstance(m, Cancel) for m in first.heard))
        await until(lambda: any(isinstance(m, Cancel) for m in last.heard))
        assert not first.opened

    in_swarm(story)


def test_a_finished_session_is_closed_exactly_once(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await pair(swarm)
        await swarm.session(PROMPT, max_tokens=2).run()
        await asyncio.sleep(0.05)
        for stage in (first, last):
            assert sum(isinstance(m, Close | Cancel) for m in stage.heard) == 1

    in_swarm(story)
