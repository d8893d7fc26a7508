"""Invite: survives chat programs; every way to be wrong has its own words."""

import base64
import contextlib
import io
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadInput, BadInvite
from swarm.invites import HEAD, Invite, _checksum, invite_text, peer_of_address
from swarm.testing.memory_network import peer_named
from swarm.wire.version import PROTOCOL_VERSION

PEER = peer_named("host")
INVITE = Invite((f"/ip4/10.0.0.1/tcp/4000/p2p/{PEER}",), "home-abcdefgh", "swarm-tiny", "secret")


def text_of(values: object) -> str:
    data = msgpack.packb(values)
    return HEAD + base64.urlsafe_b64encode(data + _checksum(data)).decode()


def test_an_invite_comes_out_as_it_went_in() -> None:
    assert Invite.parse(INVITE.encode()) == INVITE


def test_an_invite_is_one_word() -> None:
    assert len(INVITE.encode().split()) == 1


@given(st.lists(st.sampled_from([" ", "\n", "\t", "\r\n", "> ", "\u200b", "\ufeff"]), max_size=5))
def test_a_chat_program_may_wrap_and_quote_it(breaks: list[str]) -> None:
    text = INVITE.encode()
    for at, space in enumerate(breaks):
        text = text[: 9 * at] + space + text[9 * at :]
    assert Invite.parse(f'"`{text}`."\n') == INVITE


@pytest.mark.parametrize("text", ["", "hello", "http://swarm1:abc", "swarm:abc"])
def test_something_else_is_not_an_invite(text: str) -> None:
    with pytest.raises(BadInvite, match="is not an invite"):
        Invite.parse(text)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_truncated_invite_says_so(cut: int) -> None:
    with pytest.raises(BadInvite, match="truncated"):
        Invite.parse(INVITE.encode()[:-cut])


@given(st.integers(0, 500), st.characters(categories=["L", "N"], max_codepoint=127))
def test_an_altered_invite_is_refused(at: int, letter: str) -> None:
    text = INVITE.encode()
    at = len(HEAD) + at % (len(text) - len(HEAD))
    altered = text[:at] + letter + text[at + 1 :]
    if base64.urlsafe_b64decode(altered[len(HEAD) :] + "===") != base64.urlsafe_b64decode(
        text[len(HEAD) :] + "==="
    ):
        with pytest.raises(BadInvite, match="truncated or altered"):
            Invite.parse(altered)


def test_a_number_without_end_is_no_invite() -> None:
    with pytest.raises(BadInvite, match="is not an invite"):
        Invite.parse("swarm" + "1" * 5000 + ":x")


def test_an_invite_of_an_earlier_program_still_parses() -> None:
    old = Invite.parse(text_of([list(INVITE.addresses), "home-abcdefgh", "swarm-tiny", "secret"]))
    assert old == replace(INVITE, version=1)


def test_fields_of_a_later_program_are_left_out() -> None:
    values = [list(INVITE.addresses), "home-abcdefgh", "swarm-tiny", "secret", 2, {"more": [1]}]
    assert Invite.parse(text_of(values)) == replace(INVITE, version=2)


def test_a_program_that_is_too_far_ahead_asks_for_an_update() -> None:
    values = [list(INVITE.addresses), "home-abcdefgh", "swarm-tiny", "secret"]
    with pytest.raises(BadInvite, match="update this program"):
        Invite.parse(text_of([*values, PROTOCOL_VERSION + 2]))
    for nonsense in (0, -1, "2", True, None, 2.0):
        with pytest.raises(BadInvite, match="not made by Swarm"):
            Invite.parse(text_of([*values, nonsense]))


def test_the_secret_is_not_shown_with_the_rest() -> None:
    assert "secret" not in repr(INVITE)


def test_an_invite_may_stand_in_a_file_or_come_through_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "invite"
    path.write_text(INVITE.encode() + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"> {INVITE.encode()}\n"))
    for text in (str(path), "-", INVITE.encode()):
        assert Invite.parse(invite_text(text)) == INVITE
    assert invite_text("~nobody/\0") == "~nobody/\0"
    with pytest.raises(BadInput, match="is empty"):
        invite_text("-")


def test_a_newer_version_asks_for_an_update() -> None:
    with pytest.raises(BadInvite, match="newer than this program") as caught:
        Invite.parse(INVITE.encode().replace("swarm1:", "swarm2:"))
    assert "Update" in caught.value.next_step


@pytest.mark.parametrize(
    "values",
    [
        1,
        [],
        [[], "s", "m", "k"],
        [["a"], "s", "m"],
        [["a"], "s", "m", 3],
        [["a"] * 33, "s", "m", "k"],
        {"addresses": []},
    ],
)
def test_a_foreign_content_is_refused(values: object) -> None:
    with pytest.raises(BadInvite, match="not made by Swarm"):
        Invite.parse(text_of(values))


def test_an_address_without_a_peer_is_refused() -> None:
    with pytest.raises(BadInvite, match="/p2p/"):
        Invite.parse(text_of([["/ip4/10.0.0.1/tcp/4000"], "s", "m", ""]))


def test_the_peer_of_an_address_is_its_last_one() -> None:
    relay = peer_named("relay")
    address = f"/ip4/10.0.0.1/tcp/1/p2p/{relay}/p2p-circuit/p2p/{PEER}"
    assert peer_of_address(address) == PEER


@given(st.text(max_size=100))
def test_no_text_raises_anything_but_a_bad_invite(text: str) -> None:
    for candidate in (text, HEAD + text):
        with contextlib.suppress(BadInvite):
            Invite.parse(candidate)
