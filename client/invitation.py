"""Invitation: which swarm to ask when nobody says: the environment, else the last one joined."""

import os
from collections.abc import Mapping
from pathlib import Path

from swarm.errors import BadInvite
from swarm.invites import Invite, invite_text

LAST_INVITE = "last_invite"  # file in the state folder, written by nodes that join or host


def choose_invite(
    join: Invite | str | None, environment: Mapping[str, str], state: Path | None = None
) -> Invite:
    """Return the invite given, else $SWARM_INVITE, else the last one; raises BadInvite."""
    if isinstance(join, Invite):
        return join
    text = invite_text(join) if join is not None else environment.get("SWARM_INVITE", "")
    if join is None and not text:
        text = _last_invite(state or state_folder(environment))
    return Invite.parse(text)


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's Swarm keeps its state: $SWARM_STATE, or the usual place."""
    named = environment.get("SWARM_STATE")
    if named:
        return Path(named).expanduser()
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "swarm"


def unknown_swarm() -> BadInvite:
    """The error for an invite whose peers are there, but have no record of its swarm."""
    return BadInvite(
        "The peers at the invite's addresses know nothing of its swarm.",
        "Ask for a new invite: the swarm is over, or its name or key is another now.",
    )


def own_environment() -> Mapping[str, str]:
    """The environment of this process: read at the doors only (plain calls, Client, commands)."""
    return os.environ


def _last_invite(folder: Path) -> str:
    try:
        return (folder / LAST_INVITE).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadInvite(
            "No invite is given, and none is remembered.",
            "Pass --join INVITE, set SWARM_INVITE, or host a swarm: python -m swarm.node --host",
        ) from error
