"""Invite: one copyable line that says where a swarm is, what it serves and how to get in."""

import base64
import binascii
import hashlib
import re
from dataclasses import astuple, dataclass

import msgpack

from swarm.errors import BadInvite
from swarm.identity import public_key_of

VERSION = 1
HEAD = f"swarm{VERSION}:"
CHECKSUM_BYTES = 4
TEXT_CAP = 8192  # characters of an invite
ADDRESS_CAP = 32  # addresses in an invite
AGAIN = "Ask for the invite again and copy all of it."


@dataclass(frozen=True, slots=True)
class Invite:
    """Where to join: multiaddrs that end in /p2p/<peer id>, the swarm's id, its model and key."""

    addresses: tuple[str, ...]
    swarm: str
    model: str
    key: str = ""  # of a private swarm; whoever holds the invite may join

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
    found = re.match(r"swarm(\d+):", line)
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
    foreign = BadInvite("The invite was not made by Swarm, or by another kind of Swarm.")
    if not isinstance(values, tuple) or len(values) != 4:
        raise foreign
    addresses, *texts = values
    if not isinstance(addresses, tuple) or not 1 <= len(addresses) <= ADDRESS_CAP:
        raise foreign
    if not all(isinstance(text, str) for text in (*addresses, *texts)):
        raise foreign
    return Invite(addresses, *texts)


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(HEAD.encode() + data).digest()[:CHECKSUM_BYTES]
