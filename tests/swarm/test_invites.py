"""Invite: survives chat programs; every way to be wrong has its own words."""

import base64
import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cli.qr_code import BLACK_ON_WHITE, RESET, qr_code
from swarm.errors import BadInput, BadInvite
from swarm.invites import (
    HEAD,
    HEAD_2,
    Invite,
    _checksum,
    choose_invite,
    invite_text,
    peer_of_address,
)
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import public_key_of
from swarm.wire.packed_addresses import pack_address, unpack_address
from swarm.wire.version import PROTOCOL_VERSION

ESCAPES = len(BLACK_ON_WHITE) + len(RESET)
PEER = peer_named("host")
INVITE = Invite((f"/ip4/10.0.0.1/tcp/4000/p2p/{PEER}",), "home-abcdefgh", "swarm-tiny", "secret")


def text_of(values: object) -> str:
    data = msgpack.packb(values)
    return HEAD + base64.urlsafe_b64encode(data + _checksum(HEAD, data)).decode()


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
        Invite.parse(INVITE.encode().replace("swarm1:", "swarm3:"))
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


RELAY = f"/ip4/203.0.113.9/tcp/4001/p2p/{peer_named('relay')}"
SECOND = replace(INVITE, relays=(RELAY,), expires=2e9, ticket=b"ticket")


def second_text_of(values: object, head: str = HEAD_2) -> str:
    data = msgpack.packb(values)
    return head + base64.urlsafe_b64encode(data + _checksum(HEAD_2, data)).decode()


def second_values(**changes: object) -> list[object]:
    """The list in an invite of the second form, with some of its fields changed."""
    peer = [public_key_of(PEER), bytes([10, 0, 0, 1, 15, 160])]
    known: dict[str, object] = {"peers": [peer], "swarm": "s", "model": "m", "key": ""}
    known |= {"version": PROTOCOL_VERSION, "relays": [], "expires": 9, "ticket": b""}
    return list((known | changes).values())


def test_what_the_first_form_cannot_say_takes_the_second() -> None:
    assert INVITE.encode().startswith("swarm1:")
    for more in ({"relays": (RELAY,)}, {"expires": 2e9}, {"ticket": b"ticket"}):
        invite = replace(INVITE, **more)
        assert invite.encode().startswith("swarm2:")
        assert Invite.parse(invite.encode()) == invite


def test_every_kind_of_address_comes_out_of_the_second_form_as_it_went_in() -> None:
    circuit = f"/ip4/203.0.113.9/tcp/4001/p2p/{peer_named('relay')}/p2p-circuit"
    hosts = ("/ip4/10.0.0.1/tcp/1", "/ip6/2001:db8::7/tcp/65535", "/dns4/x.org/tcp/2", circuit)
    odd = ("/ip6/2001:DB8::7/tcp/1", "/ip4/10.0.0.1/tcp/01", "/ip4/1.2.3.4/udp/1/quic-v1")
    addresses = tuple(f"{host}/p2p/{PEER}" for host in (*hosts, *odd))
    invite = replace(SECOND, addresses=addresses)
    assert Invite.parse(invite.encode()).addresses == addresses


def test_the_code_for_a_camera_is_the_same_invite_in_capitals() -> None:
    text = SECOND.encode_for_qr()
    assert re.fullmatch(r"SWARM2:[A-Z2-7]+", text)
    assert Invite.parse(text) == SECOND
    with pytest.raises(BadInvite, match="truncated or altered"):
        Invite.parse(text[:-9])


def test_three_peers_of_two_addresses_fit_a_code_that_a_terminal_of_80_columns_shows() -> None:
    homes = [f"/ip4/203.0.113.{n}/tcp/4001/p2p/{peer_named(str(n))}" for n in range(3)]
    more = [f"/ip6/2001:db8::{n}/tcp/4001/p2p/{peer_named(str(n))}" for n in range(3)]
    full = replace(SECOND, addresses=(*homes, *more), key="k" * 32, swarm="s" * 33)
    assert len(qr_code(full.encode_for_qr()).split("\n")[0]) - ESCAPES <= 80


def test_an_invite_is_refused_when_its_time_is_over() -> None:
    assert SECOND.require_current(1.9e9) is SECOND
    assert INVITE.require_current(9e9) is INVITE
    with pytest.raises(BadInvite, match=r"expired on 20\d\d-") as caught:
        SECOND.require_current(2.1e9)
    assert "swarm invite" in caught.value.next_step
    with pytest.raises(BadInvite, match="expired"):
        choose_invite(None, {"SWARM_INVITE": replace(INVITE, expires=1e9).encode()})


@pytest.mark.parametrize(
    "changes",
    [
        {"peers": []},
        {"peers": [[b"short", b"123456"]]},
        {"peers": [[b"k" * 32, b"12345"]]},
        {"peers": [[b"k" * 32]]},
        {"peers": [[b"k" * 32, *[b"123456"] * 33]]},
        {"peers": [[b"k" * 32, "/x" * 300]]},
        {"relays": [b"k" * 32]},
        {"relays": None},
        {"expires": -1},
        {"expires": 2**41},
        {"expires": 1.5},
        {"ticket": "text"},
        {"ticket": bytes(2000)},
        {"version": True},
        {"key": None},
    ],
)
def test_nonsense_in_the_second_form_is_refused(changes: dict[str, object]) -> None:
    assert Invite.parse(second_text_of(second_values())).addresses == INVITE.addresses
    with pytest.raises(BadInvite):
        Invite.parse(second_text_of(second_values(**changes)))


def test_fields_after_those_of_the_second_form_are_of_a_later_program() -> None:
    assert Invite.parse(second_text_of([*second_values(), {"more": 1}])).swarm == "s"


def test_the_ticket_is_not_shown_with_the_rest() -> None:
    assert "ticket" not in repr(SECOND)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=20) | st.text(max_size=20) | st.integers())
def test_a_packed_address_is_one_or_is_refused(packed: object) -> None:
    try:
        address = unpack_address(packed)
    except ValueError:
        return
    assert pack_address(address) == packed or isinstance(packed, str)
