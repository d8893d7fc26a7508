"""Clients among liars: any frame, any record; errors of ours only, in time, and the true tokens."""

import asyncio
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.cli.swarm_status import SwarmStatus, why_idle
from client.cli.tables import show_idle, show_peers, show_plan, show_plan_table, show_stages
from client.cli.terminal import Terminal
from client.routing.live_plan import LivePlan
from planner.cli.text_chart import layers_picture
from swarm.hardware import Device, Link
from swarm.records import Advert, Capability, Member, Record, StageAdvert
from swarm.testing.memory_network import peer_named
from swarm.wire.messages import (
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Ping,
    Pong,
    Step,
    Token,
)
from tests.client.scripted import LAYERS, SPEC, ScriptedStage, ScriptedSwarm, continuation
from tests.client.skipping import run_skipping

PROMPT = [10, 20, 30]
COUNT = 5
TRUTH = continuation(PROMPT, COUNT)
END = len(PROMPT) + COUNT
TIMEOUT_SECONDS = 10.0
SPANS = {"whole": (0, LAYERS), "first": (0, 4), "last": (4, LAYERS)}

counts = st.sampled_from([0, 1, 2, 3, 4, 8, 255, 256, 257, 299, 2**31 - 1, 2**31, 2**62 - 1])
words = st.sampled_from(["", "stop", "length", "because", "internal", "bad_frame", "\x1b[2J"])
bodies = st.sampled_from([b"", b"x", bytes(36), bytes(4096)])
hops = st.lists(st.lists(counts, max_size=4), max_size=4)
seconds = st.sampled_from([0.0, 5e-324, 0.001, 0.01, 1.0, 1e11])

# Liars may say anything but a wrong id that could be right: that only a second opinion finds out.
true_ids = st.integers(0, COUNT - 1).map(
    lambda at: {"position": len(PROMPT) + at, "ids": TRUTH[at : at + 1]}
)
false_ids = st.builds(
    lambda position, ids, bad: {"position": position, "ids": [*ids, SPEC.vocab + bad]},
    counts,
    st.lists(counts, max_size=20),
    st.sampled_from([0, 1, 2**61]),
)
nowhere = st.builds(
    lambda position, ids: {"position": position, "ids": ids},
    st.sampled_from([0, 1, 2, END, END + 1, 2**62 - 1]),
    st.lists(counts, min_size=1, max_size=20),
)
tokens = st.builds(
    lambda ids, facts: (Token, {**facts, **ids}),
    st.one_of(true_ids, false_ids, nowhere, st.just({"position": 3, "ids": []})),
    st.fixed_dictionaries({"hops": hops, "finish": words, "drafted": counts, "body": bodies}),
)
impossible = st.sampled_from(
    [
        {"stage": 2},
        {"stage": 2**62 - 1},
        {"tokens": 0},
        {"tokens": 257},
        {"dtype": "f8"},
        {"body": bytes(4 * 300 * SPEC.hidden)},
        {"drafts": [1] * 16},
        {"hops": [[1, 2, 3]] * 3},
        {"hops": [[1]]},
    ]
)
steps = st.builds(
    lambda facts, wrong: (Step, {**facts, **wrong}),
    st.fixed_dictionaries(
        {
            "stage": st.integers(0, 1),
            "position": counts,
            "tokens": st.integers(1, 3),
            "sample": st.booleans(),
            "dtype": st.sampled_from(["f32", "i8", "i32"]),
            "rewinds": counts,
        }
    ),
    impossible,
)
others: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries({"stage": counts, "held": counts}).map(lambda f: (Opened, f)),
    st.fixed_dictionaries({"stage": counts, "retry_after_seconds": seconds, "reason": words}).map(
        lambda f: (Busy, f)
    ),
    st.fixed_dictionaries(
        {"code": words, "reason": words, "peer": st.sampled_from(["", "nobody", "honest", "part"])}
    ).map(lambda f: (Fail, f)),
    st.sampled_from([(Moved, {}), (Close, {}), (Cancel, {}), (Ping, {}), (Pong, {}), (Open, {})]),
)
fences = st.sampled_from(["right", "right", "right", "session", "epoch", "key"])
words_of_liars = st.lists(st.tuples(st.one_of(tokens, steps, others), fences), max_size=4)


@dataclass(frozen=True)
class Lies:
    """What a liar says when it is asked, and whether it does its work besides."""

    span: str
    at_open: Sequence[Any] = ()
    opens: bool = True
    at_step: Sequence[Any] = ()
    works: bool = False
    leaves: bool = False
    records: Sequence[Record] = field(default_factory=tuple)


def said(kind: Any, facts: dict[str, Any], fence: str, opened: Open) -> Message:
    """A lie as a message to the client of a session."""
    session = opened.session[::-1] if fence == "session" else opened.session
    epoch = opened.epoch + (fence == "epoch")
    key = b"0" * 16 if fence == "key" else opened.key
    if kind in (Ping, Pong):
        return cast("Message", kind(nonce=1))
    if kind is Open:
        return Open(session, epoch, key, 0, opened.route, "m", 5)
    if kind is Fail:
        return Fail(session, epoch, **{**facts, "peer": peer_named(facts["peer"])})
    if kind is Moved:
        return Moved(session, epoch)
    return cast("Message", kind(session, epoch, key, **facts))


def behaviour(lies: Lies) -> Callable[[ScriptedStage, str, Message], bool]:
    """The hook of a lying stage."""
    claimed = max((facts.get("held", 0) for (_, facts), _ in lies.at_open), default=0)

    def lie(stage: ScriptedStage, client: str, message: Message) -> bool:
        if isinstance(message, Open):
            tell(stage, client, message, lies.at_open)
            return not lies.opens
        opened = stage.opened.get(message.session) if isinstance(message, Step) else None
        if opened is None or not isinstance(message, Step):
            return False
        tell(stage, stage.clients[opened.session], opened, lies.at_step)
        if lies.leaves:
            stage.spawn(stage.channel.close())
        if len(stage.ids[opened.session]) < message.position <= claimed:
            gap = (Fail, {"code": "bad_frame", "reason": "A gap.", "peer": "liar"}), "right"
            tell(stage, stage.clients[opened.session], opened, [gap])
            return True  # nobody can work on rows that are not there
        return not lies.works

    def tell(stage: ScriptedStage, client: str, opened: Open, moves: Sequence[Any]) -> None:
        for (kind, facts), fence in moves:
            stage.spawn(stage.channel.send(client, said(kind, facts, fence, opened)))

    return lie


figures = st.sampled_from([0, 1, 10_000, 2**62])
stages = st.builds(
    StageAdvert,
    start=st.integers(0, 3),
    end=st.sampled_from([4, 5, LAYERS, LAYERS + 1, 2**40]),
    members=st.sampled_from([[Member("stranger", 0, 2, 1)], [Member("honest", 0, 2, 1)]]),
    step_seconds=st.sampled_from([0.0, 5e-324, 0.01, 1.7e308]),
    free_tokens=figures,
    sessions=figures,
)
records = st.lists(
    st.one_of(
        st.builds(
            Advert,
            st.sampled_from([SPEC.digest, "e" * 64, ""]),
            st.lists(stages, max_size=3),
            st.just(1),
            st.booleans(),
        ),
        st.builds(
            Capability,
            st.just(SPEC.digest),
            st.just([]),
            st.lists(
                st.builds(
                    Link,
                    st.sampled_from(["honest", "part", "stranger"]).map(peer_named),
                    st.sampled_from([0.0, 5e-324, 0.1, 1.7e308]),
                    st.just(1.0),
                ),
                max_size=3,
            ),
            st.sampled_from(["", "host", "\x1b[2J"]),
            st.booleans(),
            st.sampled_from([-1e308, 0.0, 1e308]),
        ),
    ),
    max_size=3,
)
lies_of = st.builds(
    Lies,
    span=st.sampled_from(sorted(SPANS)),
    at_open=words_of_liars,
    opens=st.booleans(),
    at_step=words_of_liars,
    works=st.booleans(),
    leaves=st.booleans(),
    records=records,
)


def own_members(record: Record, peer: str) -> Record:
    """A record as its peer would sign it: it may name itself, or others."""
    if not isinstance(record, Advert):
        return record
    named = [
        StageAdvert(
            stage.start,
            stage.end,
            [
                Member(peer if m.peer == "stranger" else peer_named(m.peer), 0, 2, 1)
                for m in stage.members
            ],
            stage.step_seconds,
            stage.free_tokens,
            stage.sessions,
        )
        for stage in record.stages
    ]
    return Advert(record.model, named, record.term, record.leaving)


async def ask_among_liars(lies: Lies) -> None:
    """One session where a liar is the first choice and an honest replica the second."""
    swarm = ScriptedSwarm()
    start, end = SPANS[lies.span]
    liar = await swarm.stage("liar", start, end)
    liar.hook = behaviour(lies)
    await swarm.stage("honest", start, end, step_seconds=1.0)
    if start > 0:
        await swarm.stage("part", 0, start)
    if end < LAYERS:
        await swarm.stage("part", end, LAYERS)
    for number, record in enumerate(lies.records):
        board = swarm.world.board(peer_named(f"stranger {number}"))
        await board.publish(own_members(record, board.peer))
    session = swarm.session(PROMPT, timeout_seconds=TIMEOUT_SECONDS, max_tokens=COUNT)
    await session.run()
    assert swarm.notes.tokens == TRUTH
    assert asyncio.get_running_loop().time() < TIMEOUT_SECONDS


ABSURD = StageAdvert(1, 4, [Member("stranger", 0, 2, 1)], 1.7e308, 0, 0)
STEP = {"stage": 2, "position": 0, "tokens": 1, "sample": False, "dtype": "f32", "rewinds": 0}
BLAME_LOST = Lies(  # most claims are absurd, so is what a layer usually takes: blame was lost in it
    "first",
    at_open=[((Step, STEP), "right"), ((Opened, {"stage": 0, "held": 0}), "right")],
    records=[Advert(SPEC.digest, [ABSURD, ABSURD], 1)] * 2,
)
NOBODY = StageAdvert(0, LAYERS, [Member("stranger", 0, 2, 1)], 0.0, 10_000, 0)
ALL_BLAMED = Lies(  # a silent liar beside an honest peer, who is blamed with it, and a stranger
    "first",
    at_open=[((Opened, {"stage": 0, "held": 0}), "right")],
    records=[Advert(SPEC.digest, [NOBODY], 1)],
)


@given(lies_of)
@example(Lies("whole", at_step=[((Token, {"position": 3, "ids": [2**62 - 1]}), "right")]))
@example(Lies("whole", at_open=[((Opened, {"stage": 0, "held": 1}), "right")], works=True))
@example(Lies("last", at_step=[((Busy, {"stage": 1, "retry_after_seconds": 1e11}), "right")]))
@example(BLAME_LOST)
@example(ALL_BLAMED)
@settings(max_examples=400, deadline=None)
def test_a_liar_costs_a_session_time_but_neither_its_life_nor_a_token(lies: Lies) -> None:
    run_skipping(ask_among_liars(lies))


def test_opens_under_way_are_dropped_in_silence_when_a_lie_ends_the_route() -> None:
    async def story() -> None:
        nonsense = (Token, {"position": 3, "ids": [106], "hops": [[1]]}), "right"
        nobody = StageAdvert(0, 4, [Member("stranger", 0, 2, 1)], 0.01, 2**62, 0)
        records = [Advert(SPEC.digest, [nobody], 1)]
        await ask_among_liars(Lies("first", at_open=[nonsense], works=True, records=records))
        gc.collect()  # now, not later, asyncio would tell of what nobody has waited for

    run_skipping(story())


@pytest.mark.slow
@given(lies_of)
@settings(max_examples=15_000, deadline=None)
def test_no_liar_of_many_costs_a_session_its_life_or_a_token(lies: Lies) -> None:
    run_skipping(ask_among_liars(lies))


names = st.sampled_from(["plan", "pipelines", "stages", "start", "end", "shards", "holders"])
more_names = st.sampled_from(["device", "kv", "mlp", "term", "planner", "reason", "ends", "dtype"])
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 6, 2**31, 2**64, 10**400, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "f32", "bf16", "shared", "a/0", "a/b", "/", "\x1b[2J", "[/]", "\ud800"]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(names, more_names), inner)
    ),
    max_leaves=12,
)
shards = st.fixed_dictionaries({"device": leaves, "kv": leaves, "mlp": leaves})
stage_maps = st.fixed_dictionaries(
    {"start": st.one_of(st.just(0), leaves), "end": st.one_of(st.just(6), leaves)},
    optional={
        "shards": st.one_of(st.lists(shards, max_size=3), values),
        "holders": st.one_of(st.lists(st.lists(shards, max_size=2), max_size=2), values),
        "ends": leaves,
        "dtype": leaves,
    },
)
pipelines = st.fixed_dictionaries({"stages": st.one_of(st.lists(stage_maps, max_size=2), values)})
plans = st.fixed_dictionaries({"pipelines": st.one_of(st.lists(pipelines, max_size=2), values)})
documents = st.one_of(
    values,
    st.fixed_dictionaries(
        {"term": st.one_of(st.just(3), leaves), "planner": st.one_of(st.just("p"), leaves)},
        optional={"plan": st.one_of(plans, values), "reason": leaves, "model": leaves},
    ),
)


def look_at(document: Any) -> None:
    """Read a plan document, and show it with everything that is shown beside it."""
    try:
        live = LivePlan.of_bytes(json.dumps(document).encode())
    except ValueError:
        return
    device = Device(0, "cpu", "\x1b[2J[/]", 1, 1.0, 1.0)
    known = Capability("m", [device], [], "host", True, 0.0, name="[link=x]\x1b")
    stage = StageAdvert(0, 2**62, [Member("a", 0, 2**62, 0)], 1.7e308, 2**62, 2**62)
    status = SwarmStatus("s", "m", {"a": known, "p": known}, (stage,), live.planner, live.term)
    terminal = Terminal()
    show_peers(terminal, status)
    show_stages(terminal, status)
    show_idle(terminal, status, why_idle(status, live))
    show_plan(terminal, live, status, layers_picture)
    show_plan_table(terminal, live, status)


@given(documents)
@settings(max_examples=100, deadline=None)
def test_whatever_a_plan_document_holds_it_is_shown_or_refused(document: Any) -> None:
    look_at(document)


@pytest.mark.slow
@given(documents)
@settings(max_examples=5_000, deadline=None)
def test_whatever_many_plan_documents_hold_they_are_shown_or_refused(document: Any) -> None:
    look_at(document)
