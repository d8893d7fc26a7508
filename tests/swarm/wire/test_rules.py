"""Rules of the wire: the page on the protocol lists what the code knows, no more and no less."""

import re
from pathlib import Path

from swarm.wire.codec import Codec
from swarm.wire.messages import KINDS, Fail
from swarm.wire.rules import LEGAL_MOVES, TEMPORARY, FailCode, Side, is_heard

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_page_lists_every_code_that_travels_and_what_a_client_does() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|\n]*\| (tries|counts)[^|\n]*\|$", PAGE, re.MULTILINE))
    travel = set(FailCode) - {FailCode.NO_ROOM}
    assert set(rows) == travel
    assert {code for code, deed in rows.items() if deed == "tries"} == TEMPORARY


def test_the_page_prints_the_table_of_legal_moves() -> None:
    rows = re.findall(
        r"^\| (stage|client) \| ([a-z, ]+) \| `(\w+)` \| ([a-z, ]+) \|$", PAGE, re.MULTILINE
    )
    assert rows == [
        (move.to, ", ".join(move.states), move.kind.__name__.upper(), ", ".join(move.senders))
        for move in LEGAL_MOVES
    ]


def test_every_message_of_a_session_is_heard_somewhere_and_no_other() -> None:
    heard = {name for name, kind in KINDS.items() if any(is_heard(kind, side) for side in Side)}
    assert set(KINDS) - heard == {"PING", "PONG"}


def test_a_code_travels_as_the_plain_word_that_it_is() -> None:
    codec = Codec(KINDS)
    ours, theirs = (Fail("s", 1, code, "gone") for code in (FailCode.STAGE_LOST, "stage_lost"))
    frame = b"".join(bytes(part) for part in codec.encode(ours))
    assert b"stage_lost" in frame
    assert frame == b"".join(bytes(part) for part in codec.encode(theirs))
