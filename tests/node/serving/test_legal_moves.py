"""A stage against the table of legal moves: what is outside changes nothing, what is in does."""

import pytest

from swarm.wire.messages import (
    KINDS,
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
from swarm.wire.rules import FailCode, Role, Side, State, is_legal
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, FIRST, KEY, LAST, STRANGER, Stand

NAMED = ("s", 1, KEY)
PEERS: dict[str, frozenset[Role]] = {
    CLIENT: frozenset({Role.CLIENT}),
    FIRST: frozenset({Role.BEFORE}),
    LAST: frozenset({Role.NEXT}),
    STRANGER: frozenset(),
}


def message_of(kind: type[Message], stand: Stand, state: State) -> Message:
    """A message for the session "s" in which nothing is wrong but perhaps its sender."""
    messages: tuple[Message, ...] = (
        stand.open(epoch=2 if state == State.OPEN else 1),
        stand.step(),
        Opened(*NAMED, 1),
        Busy(*NAMED, 1, 0.1),
        Token(*NAMED, 3, [1]),
        Fail("s", 1, FailCode.UNKNOWN_SESSION),
        Cancel(*NAMED),
        Close(*NAMED),
        Moved("s", 1),
        Ping(1),
        Pong(1),
    )
    return next(message for message in messages if type(message) is kind)


def seen_by(stand: Stand) -> tuple[object, ...]:
    """What a message that counts would change: worker, sessions, or what the client hears."""
    return len(stand.worker.orders), stand.server.sessions, len(stand.client.heard)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_stage_acts_on_what_the_table_allows_and_on_nothing_else(
    at_stand: RunStand, kind: type[Message], state: State, peer: str
) -> None:
    async def story(stand: Stand) -> None:
        if state == State.OPEN:
            await stand.open_session()
        before = seen_by(stand)
        await stand.send(message_of(kind, stand, state), sender=peer)
        roles = {CLIENT: PEERS[CLIENT]} if kind is Open else PEERS  # who opens is the client
        is_allowed = is_legal(kind, roles.get(peer, PEERS[CLIENT]), Side.STAGE, state)
        told = [each for each in stand.ears[peer].heard if isinstance(each, Fail)]
        is_answered = kind is Step and state == State.CLOSED
        assert [fail.code for fail in told] == [FailCode.UNKNOWN_SESSION] * is_answered
        if not (peer == CLIENT and is_answered):
            assert (seen_by(stand) != before) == is_allowed

    at_stand(story)
