"""Invite: one copyable line that says where a swarm is, what it serves and how to get in.

There are two forms. `swarm1:` is what every program reads. `swarm2:` is packed tighter and says
more: until when it holds, relays, and what a machine buys its membership with; it is written only
where there is something of that to say. In capitals, `SWARM2:` is the same in base32, for QR codes.
"""

import base64
import binascii
import hashlib
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from swarm.errors import BadInvite
from swarm.state_folder import LAST_INVITE, STDIN, read_secret, state_folder
from swarm.trust.identity import KEY_SIZE, peer_of_public_key, public_key_of
from swarm.wire.packed_addresses import pack_address, unpack_address
from swarm.wire.version import PROTOCOL_VERSION, mismatch

VERSION = 2
HEAD, HEAD_2, QR_HEAD = "swarm1:", "swarm2:", "SWARM2:"
CHECKSUM_BYTES = 4
TEXT_CAP = 8192  # characters of an invite
ADDRESS_CAP = 32  # addresses in an invite, and relays
TICKET_CAP = 1024  # bytes of what buys a membership
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
    relays: tuple[str, ...] = ()  # multiaddrs of peers that carry connections to others
    expires: float = 0.0  # wall-clock seconds; 0 is never
    ticket: bytes = field(default=b"", repr=False)  # buys a membership (swarm/trust/tickets.py)

    def encode(self) -> str:
        """The invite as one line without spaces, in the first form if that says all of it."""
        if self.relays or self.expires or self.ticket:
            data = self._packed()
            text = base64.urlsafe_b64encode(data + _checksum(HEAD_2, data)).decode()
            return HEAD_2 + text.rstrip("=")
        data = msgpack.packb([self.addresses, self.swarm, self.model, self.key, self.version])
        text = base64.urlsafe_b64encode(data + _checksum(HEAD, data)).decode()
        return HEAD + text.rstrip("=")

    def encode_for_qr(self) -> str:
        """The second form in the capitals and digits that a QR code holds most of."""
        data = self._packed()
        return QR_HEAD + base64.b32encode(data + _checksum(HEAD_2, data)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Invite":
        """Read an invite, wherever a chat program wrapped or quoted it; raises BadInvite."""
        head, payload = _head_and_payload(text)
        values = _values_of(head, payload)
        invite = _invite_of(values) if head == HEAD else _second_invite_of(values)
        for address in (*invite.addresses, *invite.relays):
            peer_of_address(address)
        return invite

    def require_current(self, now: float) -> "Invite":
        """The invite itself; raises BadInvite if its time is over."""
        if self.expires and now > self.expires:
            ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.expires))
            raise BadInvite(
                f"The invite expired on {ended}.", "Ask for a new one: `swarm invite` makes it."
            )
        return self

    def _packed(self) -> bytes:
        peers, relays = _by_peer(self.addresses), _by_peer(self.relays)
        values = [peers, self.swarm, self.model, self.key, self.version]
        data: bytes = msgpack.packb([*values, relays, math.ceil(self.expires), self.ticket])
        return data


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


def _by_peer(addresses: Iterable[str]) -> list[list[bytes | str]]:
    """Each peer's public key and its addresses, packed."""
    known: dict[str, list[bytes | str]] = {}
    for address in addresses:
        known.setdefault(peer_of_address(address), []).append(
            pack_address(address.rpartition("/p2p/")[0])
        )
    return [[public_key_of(peer), *where] for peer, where in known.items()]


def _head_and_payload(text: str) -> tuple[str, str]:
    line = re.sub(r"[\s\u200b\ufeff>]+", "", text[: 2 * TEXT_CAP]).strip("`'\"<>.,")
    found = re.match(r"(?:swarm|SWARM)(\d{1,4}):", line)
    if found is None:
        raise BadInvite(f"{line[:40]!r} is not an invite.", f"An invite begins with {HEAD}")
    if int(found[1]) > VERSION:
        raise BadInvite(
            f"The invite is of version {found[1]}, newer than this program's {VERSION}.",
            "Update Swarm.",
        )
    if found[0] not in (HEAD, HEAD_2, QR_HEAD) or len(line) > TEXT_CAP:
        raise BadInvite("The invite is of an unknown form.", AGAIN)
    return found[0], line.removeprefix(found[0])


def _values_of(head: str, payload: str) -> object:
    try:
        data = _decoded(head, payload.rstrip("="))
    except (binascii.Error, ValueError) as error:
        raise BadInvite("The invite is truncated or altered.", AGAIN) from error
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(head.lower(), content) != checksum:
        raise BadInvite("The invite is truncated or altered: its checksum is wrong.", AGAIN)
    try:
        return msgpack.unpackb(content, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadInvite("The invite holds no data that this program knows.") from error


def _decoded(head: str, body: str) -> bytes:
    if head == QR_HEAD:
        return base64.b32decode(body + "=" * (-len(body) % 8))
    return base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)


def _invite_of(values: object) -> Invite:
    """The invite in a list whose fields beyond those that we know are of a later program."""
    match values:
        case (tuple(addresses), str(swarm), str(model), str(key), *more):
            version = more[0] if more else 1
        case _:
            raise _foreign()
    if not 1 <= len(addresses) <= ADDRESS_CAP:
        raise _foreign()
    if not all(isinstance(address, str) for address in addresses):
        raise _foreign()
    return Invite(addresses, swarm, model, key, _known_version(version))


def _second_invite_of(values: object) -> Invite:
    """The invite in the second form's list; fields at its end may be of a later program."""
    match values:
        case (
            tuple(peers),
            str(swarm),
            str(model),
            str(key),
            version,
            tuple(relays),
            int(expires),
            bytes(ticket),
            *_,
        ) if 0 <= expires < 2**40 and len(ticket) <= TICKET_CAP:
            known = _known_version(version)
        case _:
            raise _foreign()
    addresses = _addresses_of(peers)
    if not addresses:
        raise _foreign()
    return Invite(
        addresses,
        swarm,
        model,
        key,
        known,
        relays=_addresses_of(relays),
        expires=float(expires),
        ticket=ticket,
    )


def _addresses_of(peers: Iterable[object]) -> tuple[str, ...]:
    """The multiaddrs of packed peers; raises BadInvite."""
    found: list[str] = []
    for each in peers:
        match each:
            case (bytes(key), *packed) if len(key) == KEY_SIZE:
                peer = peer_of_public_key(key)
                found += [f"{_unpacked(address)}/p2p/{peer}" for address in packed]
            case _:
                raise _foreign()
        if len(found) > ADDRESS_CAP:
            raise _foreign()
    return tuple(found)


def _unpacked(address: object) -> str:
    try:
        return unpack_address(address)
    except ValueError as error:
        raise _foreign() from error


def _known_version(version: object) -> int:
    if type(version) is not int or version < 1:
        raise _foreign()
    if problem := mismatch(version):
        raise BadInvite(problem, "Or ask for an invite of a swarm that is as new as this program.")
    return version


def _foreign() -> BadInvite:
    return BadInvite("The invite was not made by Swarm, or by another kind of Swarm.")


def _checksum(head: str, data: bytes) -> bytes:
    return hashlib.sha256(head.encode() + data).digest()[:CHECKSUM_BYTES]


def choose_invite(
    join: Invite | str | None, environment: Mapping[str, str], state: Path | None = None
) -> Invite:
    """Return the invite given, else $SWARM_INVITE, else the last one; raises BadInvite."""
    if isinstance(join, Invite):
        return join
    text = invite_text(join) if join is not None else environment.get("SWARM_INVITE", "")
    if join is None and not text:
        text = _last_invite(state or state_folder(environment))
    return Invite.parse(text).require_current(time.time())


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
