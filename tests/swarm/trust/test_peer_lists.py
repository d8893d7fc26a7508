"""PeerLists: bans and allowances from flags and files, read again, and never lost by a slip."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.errors import BadInput
from swarm.testing.memory_network import peer_named
from swarm.trust.door import Door
from swarm.trust.peer_lists import ALLOW_FILE, BAN_FILE, LOOK_SECONDS, PeerLists, peer_id

GOOD, BAD, OTHER = peer_named("good"), peer_named("bad"), peer_named("other")


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def look_again(self) -> None:
        self.now += LOOK_SECONDS


def write(path: Path, text: str, at: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(at, at))


def test_who_is_banned_is_refused_and_nobody_else() -> None:
    lists = PeerLists([BAD])
    assert "banned" in lists.problem_with(BAD)
    assert lists.problem_with(GOOD) == ""


def test_where_somebody_is_allowed_others_are_not_and_a_ban_counts_first() -> None:
    lists = PeerLists([BAD], [GOOD, BAD])
    assert lists.problem_with(GOOD) == ""
    assert "banned" in lists.problem_with(BAD)
    assert "allowed" in lists.problem_with(OTHER)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    clock = Clock()
    lists = PeerLists(folder=tmp_path, clock=clock)
    write(tmp_path / BAN_FILE, f"# spoiled a session\n{BAD}  # since Monday\n\n", 1)
    assert lists.problem_with(BAD) == ""
    clock.look_again()
    assert "banned" in lists.problem_with(BAD)
    (tmp_path / BAN_FILE).unlink()
    clock.look_again()
    assert lists.problem_with(BAD) == ""


def test_a_slip_in_a_file_loses_no_ban(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    write(tmp_path / BAN_FILE, BAD, 1)
    lists = PeerLists(folder=tmp_path, clock=clock)
    write(tmp_path / BAN_FILE, f"{OTHER}\nnonsense", 2)
    clock.look_again()
    assert "banned" in lists.problem_with(BAD)
    assert "'nonsense' is not the id of a peer" in caplog.text


@pytest.mark.parametrize("content", [b"nonsense", b"\xff", b"x" * (2 << 20)])
def test_a_file_that_cannot_be_used_stops_a_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / BAN_FILE).write_bytes(content)
    with pytest.raises(BadInput):
        PeerLists(folder=tmp_path)


def test_an_empty_list_of_allowed_peers_allows_nobody(tmp_path: Path) -> None:
    (tmp_path / ALLOW_FILE).write_text("# nobody yet\n")
    lists = PeerLists(folder=tmp_path)
    assert "allowed" in lists.problem_with(GOOD)
    assert Door(GOOD, lists.problem_with).admits(GOOD, b""), "a peer speaks with itself"


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=80))
def test_no_text_is_a_peer_but_an_id(text: str) -> None:
    try:
        peer = peer_id(text)
    except BadInput:
        return
    assert peer == text.strip()
