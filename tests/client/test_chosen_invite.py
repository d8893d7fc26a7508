"""Which swarm is asked when nobody says."""

from pathlib import Path

import pytest

from swarm.errors import BadInvite
from swarm.invites import Invite, choose_invite
from swarm.state_folder import LAST_INVITE, state_folder
from swarm.trust.identity import Identity


def invite(name: str) -> Invite:
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.throwaway().peer}"
    return Invite((address,), name, "swarm-tiny")


def test_the_given_one_comes_first_then_the_environment_then_the_last(tmp_path: Path) -> None:
    given, named, last = invite("given"), invite("named"), invite("last")
    (tmp_path / LAST_INVITE).write_text(last.encode() + "\n")
    environment = {"SWARM_INVITE": named.encode(), "SWARM_STATE": str(tmp_path)}
    assert choose_invite(given, environment) == given
    assert choose_invite(given.encode(), environment) == given
    assert choose_invite(None, environment) == named
    del environment["SWARM_INVITE"]
    assert choose_invite(None, environment) == last
    assert choose_invite(None, {}, tmp_path) == last


def test_without_any_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInvite, match="--join INVITE"):
        choose_invite(None, {}, tmp_path)


@pytest.mark.parametrize("text", ["", "nonsense", "swarm1:", "swarm1:AAAA", "swarm9:AAAA"])
def test_a_malformed_invite_is_refused(text: str) -> None:
    with pytest.raises(BadInvite):
        choose_invite(text, {})


def test_state_lies_where_the_environment_says() -> None:
    assert state_folder({"SWARM_STATE": "/x"}) == Path("/x")
    assert state_folder({"XDG_STATE_HOME": "/y"}) == Path("/y/swarm")
    assert state_folder({}) == Path.home() / ".local/state/swarm"
