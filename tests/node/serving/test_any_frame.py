"""Whatever strangers send and workers answer about others, an honest session gets its answers."""

import asyncio
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node.device.local_device import DeviceContext, LocalDevice, ShardState
from node.worker import messages
from swarm.errors import RemoteProtocolError
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.clock import settle
from swarm.wire.messages import KINDS, Message, Open, Step, Token
from swarm.wire.token_ids import ids_to_bytes
from tests.node.stands import KEY, LAST, STRANGER, Stand

EVIL_KEY = b"e" * 16
NAMES = [Stand.name(session, client=STRANGER) for session in ("evil", "beside")]
ORDINARY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(ORDINARY, max_examples=20_000)
COUNTS = st.sampled_from([0, 1, 2, 3, 4, 15, 16, 255, 256, 1000, 2**31, 2**31 + 1, 2**62 - 1])
WORDS = st.sampled_from(["", "s", "evil", *NAMES, "beside", "g", "i32", "f32", "x" * 64, "\x1b["])
PLAIN = st.one_of(COUNTS, WORDS, st.floats(allow_nan=True), st.booleans(), st.none())
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: COUNTS,
    str: WORDS,
    bool: st.booleans(),
    float: st.floats(0, 1e11),
    bytes: st.sampled_from([b"", EVIL_KEY, KEY, b"x" * 60_000]),
    list[int]: st.lists(COUNTS, max_size=4) | st.just([1] * 512),
    list[list[int]]: st.lists(st.lists(COUNTS, max_size=4), max_size=4) | st.just([[9] * 3] * 512),
    list[list[Any]]: st.lists(st.lists(PLAIN, max_size=4), max_size=4),
    list[dict[str, Any]]: st.just([]),
    dict[str, Any]: st.dictionaries(
        st.sampled_from(["temperature", "seed", "stop", "max_tokens", "speculate", "?"]), PLAIN
    ),
}
BODIES = st.sampled_from(
    [b"", b"odd", bytes(4), bytes(12), ids_to_bytes([-1, 2**31 - 1]), bytes(9000)]
)


def values_of(kind: type[Message]) -> dict[str, st.SearchStrategy[Any]]:
    """What each field of a message may legally hold, extremes among it."""
    hints = typing.get_type_hints(kind)
    return {each.name: BY_TYPE[hints[each.name]] for each in fields(kind) if each.name != "body"}


def some_of(kinds: list[type[Message]]) -> st.SearchStrategy[Message]:
    return st.one_of([st.builds(kind, **values_of(kind), body=BODIES) for kind in kinds])


Change = Callable[[Stand], Message]


@st.composite
def nearly_right(draw: st.DrawFn) -> Change:
    """An OPEN or STEP as it should be, but for a few fields."""
    kind: type[Message] = draw(st.sampled_from([Open, Step]))
    strategies = values_of(kind) | {"body": BODIES}
    names = draw(st.lists(st.sampled_from(sorted(strategies)), max_size=3, unique=True))
    changes = {name: draw(strategies[name]) for name in names}

    def make(stand: Stand) -> Message:
        opened = stand.open(session="evil", key=EVIL_KEY)
        step = replace(stand.step(), session="evil", key=EVIL_KEY)
        right: Message = opened if kind is Open else step
        return replace(right, **changes)

    return make


FRAMES = some_of(list(KINDS.values()))
SPOKEN = [messages.Computed, messages.Reserved, messages.Failed]
ANSWERS = some_of(
    [*SPOKEN, messages.Measured, messages.Prepared, messages.Progress, messages.Loaded]
)
OF_ANOTHER_DEVICE = some_of([*SPOKEN, messages.Progress, messages.Loaded, messages.Broken])
HOSTILE = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), FRAMES),
        st.tuples(st.just("frame"), nearly_right()),
        st.tuples(st.just("answer"), ANSWERS),
        st.tuples(st.just("other device"), OF_ANOTHER_DEVICE),
    ),
    max_size=6,
)
Attack = list[tuple[str, Any]]


def other_device_of(stand: Stand) -> LocalDevice:
    """A device beside the one that serves, with a shard of the group "g" on its way."""
    parts = (stand.channel, stand.server, None, "", None, "", "", None)
    device = LocalDevice(DeviceContext(*cast("Any", parts)), 1, 1 << 30, stand.worker)
    stage = Stage(0, 3, (Shard(f"{LAST}/1", 8, 8),))
    device.shard_state = ShardState(Assignment(stage, 0), "g", 0.0)
    return device


def attack(stand: Stand, device: LocalDevice, items: Attack) -> None:
    for how, what in items:
        message = what(stand) if callable(what) else what
        if how == "frame":
            try:  # the channel answers it with FAIL
                stand.server.on_message(STRANGER, message)
            except RemoteProtocolError:
                continue
        elif how == "answer" and getattr(message, "session", "") != stand.name("beside"):
            stand.server.on_answer(0, message)
        elif how == "other device":
            device.on_answer(message)
            stand.server.on_answer(1, message)


async def live_through(attacks: list[Attack]) -> None:
    """An honest session with an attack before each of its steps."""
    stand = Stand(LAST)
    device = other_device_of(stand)
    attack(stand, device, attacks[0])
    await stand.send(stand.open(session="beside"))
    await stand.answer(messages.Reserved(stand.name("beside"), 900))
    for position, token, hostile in ((0, 9, attacks[1]), (3, 11, attacks[2])):
        attack(stand, device, hostile)
        await settle(3)
        tokens = 1 if position else 3
        await stand.send(replace(stand.step(position, tokens), session="beside"))
        computed = stand.computed(position, tokens, token)
        await stand.answer(replace(computed, session=stand.name("beside")))
        told = stand.client.last(Token)
        assert (told.session, told.position, told.ids) == ("beside", position + tokens, [token])
    stand.server.adverts()
    stand.server.free_idle()
    await stand.server.close(0.0)


ATTACKS = st.lists(HOSTILE, min_size=3, max_size=3)


def namesake(stand: Stand) -> Message:
    """An OPEN by the name of the honest session, before its client's."""
    return stand.open(session="beside", key=EVIL_KEY)


@ORDINARY
@given(ATTACKS)
@example([[("frame", namesake)], [], []])
def test_an_honest_session_ends_well_whatever_others_send_and_workers_answer(
    attacks: list[Attack],
) -> None:
    asyncio.run(live_through(attacks))


@pytest.mark.slow
@LONG
@given(ATTACKS)
def test_an_honest_session_ends_well_in_twenty_thousand_attacks(attacks: list[Attack]) -> None:
    asyncio.run(live_through(attacks))
