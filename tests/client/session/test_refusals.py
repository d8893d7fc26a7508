"""What peers say in a refusal: escaped where it becomes an error, so that scripts are safe too."""

import pytest

from client.session.refusals import refusal_of
from swarm.formatting import short_id
from swarm.p2p.rpc import RpcStatus, _refusal
from swarm.testing.memory_network import peer_named
from swarm.wire.messages import Busy, Fail

EVE = peer_named("eve")
KEY = b"k" * 16
SAID = "\x1b]52;c;AAAA\x07\x1b[2J\nerror: \ud800[bold]"
SHOWN = r"\x1b]52;c;AAAA\x07\x1b[2J\nerror: \ud800[bold]"


@pytest.mark.parametrize(
    "message",
    [
        Busy("s", 1, KEY, 0, 0.1, SAID),
        Fail("s", 1, "internal", SAID),
        Fail("s", 1, "stage_lost", SAID),
    ],
    ids=["busy", "fail", "lost"],
)
def test_the_reason_of_a_refusal_is_escaped(message: Busy | Fail) -> None:
    said = str(refusal_of(EVE, message, {EVE}))
    assert SHOWN in said
    assert said.isprintable()


def test_codes_and_blamed_peers_are_escaped_too() -> None:
    assert str(refusal_of(EVE, Fail("s", 1, "\x1b[2J"), {EVE})).isprintable()
    assert short_id("peer\x1b[2J").isprintable()
    assert str(_refusal(EVE, RpcStatus(SAID, SAID, 0.0))).isprintable()
