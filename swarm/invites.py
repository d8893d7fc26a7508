"""Invite: one copyable line that says where a swarm is, what it serves and how to get in."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path

import msgpack

from swarm.errors import BadInvite
from swarm.state_folder import LAST_INVITE, STDIN, read_secret, state_folder
from swarm.trust.identity import public_key_of
from swarm.wire.version import PROTOCOL_VERSION, mismatch

VERSION = 1
HEAD = f"swarm{VERSION}:"
CHECKSUM_BYTES = 4
TEXT_CAP = 8192  # characters of an invite
ADDRESS_CAP = 32  # addresses in an invite
PATH_CAP = 1024
AGAIN = "Ask for the invite again and copy all of it."


@dataclass(frozen=True, slots=True)
class Invite:
    """Where to join: multiaddrs that end in /p2p/<peer id>, the swarm's id, its model and key."""

    addresses: tuple[str, ...]
    swarm: str
    model: str
    key: str = field(default="", repr=False)  # of a private swarm; who holds the invite may join
    version: int = PROTOCOL_VERSION  # of the program that made it

    def encode(self) -> str:
        """The invite as one line without spaces."""
        data: bytes = msgpack.packb(astuple(self))
        text = base64.urlsafe_b64encode(data + _checksum(data)).decode().rstrip("=")
        return HEAD + text

    @classmethod
    def parse(cls, text: str) -> "Invite":
        """Read an invite, wherever a chat program wrapped or quoted it; raises BadInvite."""
        invite = _invite_of(_values_of(_payload_of(text)))
        for address in invite.addresses:
            peer_of_address(address)
        return invite


def invite_text(given: str) -> str:
    """An invite as it was given, or what stands in the file it names ("-": standard input)."""
    if given == STDIN or (len(given) < PATH_CAP and _is_file(given)):
        return read_secret(given)
    return given


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # no name at all, or nobody's home
        return False


def peer_of_address(address: str) -> str:
    """The peer id at the end of a multiaddr; raises BadInvite if there is none."""
    peer = address.rpartition("/p2p/")[2]
    try:
        public_key_of(peer)
    except ValueError as error:
        raise BadInvite(f"The address {address[:200]!r} does not end in /p2p/<peer id>.") from error
    return peer


def _payload_of(text: str) -> str:
    line = re.sub(r"[\s\u200b\ufeff>]+", "", text[: 2 * TEXT_CAP]).strip("`'\"<>.,")
    found = re.match(r"swarm(\d{1,4}):", line)
    if found is None:
        raise BadInvite(f"{line[:40]!r} is not an invite.", f"An invite begins with {HEAD}")
    if int(found[1]) > VERSION:
        raise BadInvite(
            f"The invite is of version {found[1]}, newer than this program's {VERSION}.",
            "Update Swarm.",
        )
    if not line.startswith(HEAD) or len(line) > TEXT_CAP:
        raise BadInvite("The invite is of an unknown form.", AGAIN)
    return line.removeprefix(HEAD)


def _values_of(payload: str) -> object:
    body = payload.rstrip("=")
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInvite("The invite is truncated or altered.", AGAIN) from error
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        raise BadInvite("The invite is truncated or altered: its checksum is wrong.", AGAIN)
    try:
        return msgpack.unpackb(content, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadInvite("The invite holds no data that this program knows.") from error


def _invite_of(values: object) -> Invite:
    """The invite in a list whose fields beyond those that we know are of a later program."""
    match values:
        case (tuple(addresses), str(swarm), str(model), str(key), *more):
            version = more[0] if more else 1
        case _:
            raise _foreign()
    if type(version) is not int or version < 1 or not 1 <= len(addresses) <= ADDRESS_CAP:
        raise _foreign()
    if not all(isinstance(address, str) for address in addresses):
        raise _foreign()
    if problem := mismatch(version):
        raise BadInvite(problem, "Or ask for an invite of a swarm that is as new as this program.")
    return Invite(addresses, swarm, model, key, version)


def _foreign() -> BadInvite:
    return BadInvite("The invite was not made by Swarm, or by another kind of Swarm.")


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(HEAD.encode() + data).digest()[:CHECKSUM_BYTES]


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


def unknown_swarm() -> BadInvite:
    """The error for an invite whose peers are there, but have no record of its swarm."""
    return BadInvite(
        "The peers at the invite's addresses know nothing of its swarm.",
        "Ask for a new invite: the swarm is over, or its name or key is another now.",
    )


def _last_invite(folder: Path) -> str:
    try:
        return (folder / LAST_INVITE).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadInvite(
            "No invite is given, and none is remembered.",
            "Pass --join INVITE, set SWARM_INVITE, or host a swarm: python -m swarm.node --host",
        ) from error
