"""Register: which machines are revoked and what bought which machine, as delegates say.

Entries are signed, so they may come from anybody, in any order, and twice: what they amount to is
the same wherever the same ones are known. Who stands nearer to the founder revokes who stands
further from it; what a revoked delegate says, and whom it certified, counts no more. A revocation
also voids every ticket made before it, as the revoked machine may have seen any of them. Of two
machines that spent one ticket at delegates that did not know of each other, the earlier stays. What
tickets for many machines bought is noted, too: who had such an invite may have let in several
machines, and whoever revokes one of them learns of the others.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack

from swarm.errors import RemoteProtocolError
from swarm.state_folder import write_private
from swarm.trust.certificate_chain import Chain
from swarm.trust.identity import KEY_SIZE, Identity, peer_of_public_key, public_key_of, verify
from swarm.trust.membership import PASS_CAP, Holding, holding_of
from swarm.trust.tickets import ID_BYTES, Ticket

REVOKED, SPENT, BOUGHT = 1, 2, 3
FACTS = struct.Struct(f"!BQ{KEY_SIZE}s{ID_BYTES}s")  # kind, seconds, machine, ticket
SIGNATURE_BYTES = 64
ENTRIES_CAP = 1024
REGISTER_CAP = ENTRIES_CAP * (FACTS.size + SIGNATURE_BYTES + PASS_CAP + 8)
SKEW_SECONDS = 60.0  # an entry from later than this counts only when its time has come
DOMAIN = b"swarm register 1"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a delegate says."""

    kind: int
    at: int
    machine: str
    ticket: bytes
    issuer: Holding
    data: bytes


def make_entry(
    swarm: str,
    issuer: tuple[Holding, Identity],
    kind: int,
    machine: str,
    now: float,
    ticket: bytes = bytes(ID_BYTES),
) -> bytes:
    """Sign that a machine is revoked, or what bought its certificate."""
    holding, identity = issuer
    facts = FACTS.pack(kind, int(now), public_key_of(machine), ticket)
    return facts + identity.sign(_signed(swarm, facts)) + holding.data


def read_entry(swarm: str, data: bytes) -> Entry | None:
    """The entry if it is genuine: signed by a delegate; else None."""
    if not FACTS.size + SIGNATURE_BYTES < len(data) <= FACTS.size + SIGNATURE_BYTES + PASS_CAP:
        return None
    facts, rest = data[: FACTS.size], data[FACTS.size :]
    issuer = holding_of(swarm, rest[SIGNATURE_BYTES:])
    kind, at, machine, ticket = FACTS.unpack(facts)
    if issuer is None or not issuer.is_delegate or kind not in (REVOKED, SPENT, BOUGHT):
        return None
    if not verify(issuer.machine, _signed(swarm, facts), rest[:SIGNATURE_BYTES]):
        return None
    return Entry(kind, at, peer_of_public_key(machine), ticket, issuer, data)


class Register:
    """All entries that are known here, and what follows from them."""

    def __init__(self, swarm: str, path: Path | None = None) -> None:
        self._swarm = swarm
        self._path = path
        self._entries: dict[bytes, Entry] = {}
        self._revoked: dict[str, int] = {}  # machine -> least rank of who says so
        self._spent: dict[bytes, str] = {}  # ticket -> the machine that it bought
        self._bought: dict[bytes, set[str]] = {}  # ticket for many -> machines
        self.tickets_since = 0  # tickets made before then are void
        self.read_file()

    @property
    def digest(self) -> bytes:
        """Equal where the same entries are known."""
        return hashlib.sha256(b"".join(sorted(self._entries))).digest()

    def to_bytes(self) -> bytes:
        """All entries, as `add_all` takes them."""
        return bytes(msgpack.packb(list(self._entries)))

    def add_all(self, data: bytes, now: float) -> bool:
        """Take entries of a peer; whether one was news; raises RemoteProtocolError."""
        try:
            values = msgpack.unpackb(data) if len(data) <= REGISTER_CAP else None
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("A register is not msgpack.") from error
        if not isinstance(values, list) or not all(isinstance(each, bytes) for each in values):
            raise RemoteProtocolError("A register is not a list of entries.")
        return self.add(values, now)

    def add(self, values: Iterable[bytes], now: float) -> bool:
        """Take entries that are genuine and of no later time; whether one was news."""
        fresh = [each for each in values if each not in self._entries]
        read = [read_entry(self._swarm, each) for each in fresh]
        timely = [e for e in read if e is not None and e.at <= now + SKEW_SECONDS]
        before = self._entries.keys()
        known = sorted([*self._entries.values(), *timely], key=_weight)
        self._entries = {entry.data: entry for entry in known[:ENTRIES_CAP]}
        if self._entries.keys() == before:
            return False
        self._weigh()
        return True

    def revokes(self, chain: Chain) -> bool:
        """Whether somebody on the chain is revoked by who stands nearer to the founder."""
        places = enumerate(chain.peers)
        return any(self._revoked.get(peer, place) < place for place, peer in places)

    def names(self, machine: str) -> bool:
        """Whether a machine's key is revoked, by whomever."""
        return machine in self._revoked

    def spender(self, ticket: Ticket) -> str:
        """Which machine has spent a one-time ticket; empty if none has."""
        return self._spent.get(ticket.id, "")

    def bought_by(self, ticket: Ticket) -> frozenset[str]:
        """Which machines a ticket for many has bought."""
        return frozenset(self._bought.get(ticket.id, ()))

    def has_let_in(self, machine: str) -> bool:
        """Whether a ticket is known to have bought this machine."""
        bought = any(machine in machines for machines in self._bought.values())
        return bought or machine in self._spent.values()

    def place_of(self, machine: str) -> int:
        """How far from the founder a machine was let in; 0 if that is not known."""
        letting = (e for e in self._entries.values() if e.kind in (SPENT, BOUGHT))
        return min((e.issuer.rank + 1 for e in letting if e.machine == machine), default=0)

    def came_with(self, machine: str) -> frozenset[str]:
        """Other machines, not revoked, that one and the same ticket has bought."""
        sets = [machines for machines in self._bought.values() if machine in machines]
        found = frozenset[str]().union(*sets) - {machine}
        return found - self._revoked.keys()

    def revoked_only_by(self, machine: str) -> frozenset[str]:
        """Machines that are out by the word of this one alone, and of those that it certified."""
        revoking = [each for each in self._entries.values() if each.kind == REVOKED]
        own = {e.machine for e in revoking if machine in e.issuer.chain.peers}
        return frozenset(own - {e.machine for e in revoking if machine not in e.issuer.chain.peers})

    def read_file(self) -> None:
        """Take what another program of this machine has written."""
        if self._path is None:
            return
        try:
            data = self._path.read_bytes()
            self.add_all(data, float("inf"))
        except (OSError, RemoteProtocolError):
            return

    def save(self) -> None:
        """Keep all entries, with those of other programs; raises OSError."""
        if self._path is None:
            return
        self.read_file()
        write_private(self._path, self.to_bytes())

    def _weigh(self) -> None:
        """What all entries amount to: those of higher rank first, as they may undo others."""
        self._revoked, self._spent, self._bought, self.tickets_since = {}, {}, {}, 0
        entries = list(self._entries.values())  # in the order of their weight
        for entry in (each for each in entries if each.kind == REVOKED):
            if not self.revokes(entry.issuer.chain):
                self._revoke(entry)
                self.tickets_since = max(self.tickets_since, entry.at)
        spent = [e for e in entries if e.kind == SPENT and not self.revokes(e.issuer.chain)]
        for entry in sorted(spent, key=lambda e: (e.at, e.machine)):
            if self._spent.setdefault(entry.ticket, entry.machine) != entry.machine:
                self._revoke(entry)  # it came second, at a delegate that could not know
        for entry in (each for each in entries if each.kind == BOUGHT):
            self._bought.setdefault(entry.ticket, set()).add(entry.machine)

    def _revoke(self, entry: Entry) -> None:
        known = self._revoked.get(entry.machine, entry.issuer.rank)
        self._revoked[entry.machine] = min(known, entry.issuer.rank)


def _weight(entry: Entry) -> tuple[bool, int, int, int, bytes]:
    """What decides which entries are kept: a delegate cannot crowd out who stands above it.

    What buyers can bring about without end comes last, the latest of it first.
    """
    is_bought = entry.kind == BOUGHT
    at = -entry.at if is_bought else entry.at
    return is_bought, entry.issuer.rank, entry.kind, at, entry.data


def _signed(swarm: str, facts: bytes) -> bytes:
    name = swarm.encode()
    return DOMAIN + struct.pack("!I", len(name)) + name + facts
