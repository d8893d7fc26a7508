"""Tickets: secrets in invites that buy a machine its membership, many times or once.

A ticket is a signing key and a delegate's word on what it buys. Any delegate can check it without
having heard of it before; who buys shows with a signature that it has the key, for one machine.
"""

import hashlib
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from swarm.trust.identity import KEY_SIZE, Identity, peer_of_public_key, public_key_of, verify
from swarm.trust.membership import PASS_CAP, Holding, holding_of

ONCE, AS_DELEGATE = 1, 2
TERMS = struct.Struct("!32sQQB")  # the ticket's public key, made and until in seconds, flags
SIGNATURE_BYTES = 64
ID_BYTES = 16
SOLD, BOUGHT = b"swarm ticket 1", b"swarm ticket use 1"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a delegate says that the holder of a key may buy."""

    issuer: Holding
    key: bytes  # public
    made: int
    until: int
    flags: int
    data: bytes

    @property
    def id(self) -> bytes:
        """What its use is recorded under."""
        return hashlib.sha256(self.key).digest()[:ID_BYTES]

    @property
    def is_once(self) -> bool:
        """Whether it buys one machine only."""
        return bool(self.flags & ONCE)

    @property
    def makes_delegate(self) -> bool:
        """Whether what it buys may certify others, too."""
        return bool(self.flags & AS_DELEGATE)


def sell(
    swarm: str, issuer: tuple[Holding, Identity], made: float, until: float, flags: int
) -> bytes:
    """A new ticket with its secret, as an invite carries it."""
    holding, identity = issuer
    secret = Ed25519PrivateKey.generate()
    public = secret.public_key().public_bytes_raw()
    terms = TERMS.pack(public, int(made), int(until), flags)
    signature = identity.sign(_sold(swarm, terms))
    return secret.private_bytes_raw() + terms[KEY_SIZE:] + signature + holding.data


def ask_with(swarm: str, ticket: bytes, machine: str) -> bytes:
    """What buys a machine its membership, without the ticket's secret; raises ValueError."""
    if len(ticket) < KEY_SIZE:
        raise ValueError("not a ticket")
    secret = Ed25519PrivateKey.from_private_bytes(ticket[:KEY_SIZE])
    public, own = secret.public_key().public_bytes_raw(), public_key_of(machine)
    return own + secret.sign(_bought(swarm, own)) + public + ticket[KEY_SIZE:]


def read_request(swarm: str, data: bytes) -> tuple[str, Ticket] | None:
    """The machine that asks, and its genuine ticket; None if anything is not as it should be."""
    machine, signature = data[:KEY_SIZE], data[KEY_SIZE:][:SIGNATURE_BYTES]
    ticket = _ticket_of(swarm, data[KEY_SIZE + SIGNATURE_BYTES :])
    if ticket is None or not verify(
        peer_of_public_key(ticket.key), _bought(swarm, machine), signature
    ):
        return None
    return peer_of_public_key(machine), ticket


def _ticket_of(swarm: str, data: bytes) -> Ticket | None:
    if not TERMS.size + SIGNATURE_BYTES < len(data) <= TERMS.size + SIGNATURE_BYTES + PASS_CAP:
        return None
    terms, rest = data[: TERMS.size], data[TERMS.size :]
    issuer = holding_of(swarm, rest[SIGNATURE_BYTES:])
    if issuer is None or not issuer.is_delegate:
        return None
    if not verify(issuer.machine, _sold(swarm, terms), rest[:SIGNATURE_BYTES]):
        return None
    key, made, until, flags = TERMS.unpack(terms)
    return Ticket(issuer, key, made, until, flags, data)


def _sold(swarm: str, terms: bytes) -> bytes:
    name = swarm.encode()
    return SOLD + struct.pack("!I", len(name)) + name + terms


def _bought(swarm: str, machine: bytes) -> bytes:
    name = swarm.encode()
    return BOUGHT + struct.pack("!I", len(name)) + name + machine
