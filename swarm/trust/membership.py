"""Membership of a certified swarm: who may be in it, by chains of certificates from its founder.

The founder certifies delegates, delegates certify machines (and further delegates), and a machine
its own nodes and clients. So a chain is: founder, delegates, perhaps a machine, perhaps a peer of
it; a byte before it says how many delegates. What ends before the peer is a machine's holding,
kept on its disk; with the peer it is a pass, which is shown with every stream and question.
"""

from dataclasses import dataclass

from swarm.trust.certificate_chain import Chain, add_link, links_in, read_chain
from swarm.trust.identity import Identity, public_key_of

DELEGATE, MACHINE, PEER = b"swarm delegate 1", b"swarm machine 1", b"swarm peer 1"
DELEGATES_CAP = 2  # one after the other: the founder's own machine, and those that it makes
PASS_CAP = 512  # bytes
MACHINE_SECONDS = 365 * 86400.0
PEER_SECONDS = 90 * 86400.0


@dataclass(frozen=True, slots=True)
class Holding:
    """What a machine holds: that it is a member, and whether it may certify others."""

    data: bytes
    chain: Chain

    @property
    def machine(self) -> str:
        """The id of the machine's key."""
        return self.chain.subject

    @property
    def is_delegate(self) -> bool:
        """Whether it may certify others."""
        return self.data[0] == len(self.chain.peers) - 1

    @property
    def may_make_delegates(self) -> bool:
        """Whether whom it certifies may certify others."""
        return self.is_delegate and self.data[0] < DELEGATES_CAP

    @property
    def rank(self) -> int:
        """How far from the founder; who stands nearer may revoke who stands further."""
        return len(self.chain.peers) - 1


@dataclass(frozen=True, slots=True)
class Pass:
    """What a node or client shows: whose it is, and the chain above it."""

    data: bytes
    chain: Chain

    @property
    def machine(self) -> str:
        """Whose node or client it is."""
        return self.chain.peers[-2]

    @property
    def is_of_delegate(self) -> bool:
        """Whether its machine may certify others."""
        return self.data[0] == len(self.chain.peers) - 2


def found(swarm: str, founder: Identity, machine: Identity, now: float) -> Holding:
    """The holding of the founder's own machine."""
    chain = public_key_of(founder.peer)
    chain = add_link(chain, DELEGATE, swarm, founder, machine.peer, now + 100 * MACHINE_SECONDS)
    holding = holding_of(swarm, b"\x01" + chain)
    assert holding is not None, "we are the founder"
    return holding


def certify(
    swarm: str, issuer: tuple[Holding, Identity], machine: str, now: float, *, as_delegate: bool
) -> Holding:
    """Certify a machine; raises ValueError if the issuer may not."""
    holding, identity = issuer
    if not holding.is_delegate or holding.machine != identity.peer:
        raise ValueError("only delegates certify machines")
    delegates = holding.data[0] + as_delegate
    if delegates > DELEGATES_CAP:
        raise ValueError(f"delegates are at most {DELEGATES_CAP} steps from the founder")
    domain = DELEGATE if as_delegate else MACHINE
    until = min(now + MACHINE_SECONDS, holding.chain.until)
    chain = add_link(holding.data[1:], domain, swarm, identity, machine, until)
    made = holding_of(swarm, bytes([delegates]) + chain)
    assert made is not None, "the issuer's own holding was read"
    return made


def pass_for(swarm: str, holding: Holding, machine: Identity, peer: str, now: float) -> Pass:
    """A machine's word that a peer is its own."""
    chain = add_link(holding.data[1:], PEER, swarm, machine, peer, now + PEER_SECONDS)
    made = pass_of(swarm, holding.data[:1] + chain)
    assert made is not None, "the machine's own holding was read"
    return made


def holding_of(swarm: str, data: bytes) -> Holding | None:
    """Read a holding; None if it is not genuine."""
    if not _is_possible(data):
        return None
    machines = links_in(data[1:]) - data[0]
    if machines not in (0, 1) or data[0] + machines < 1:
        return None
    chain = read_chain(swarm, data[1:], (DELEGATE,) * data[0] + (MACHINE,) * machines)
    return Holding(data, chain) if chain else None


def pass_of(swarm: str, data: bytes) -> Pass | None:
    """Read a pass; None if it is not genuine."""
    if not _is_possible(data):
        return None
    machines = links_in(data[1:]) - data[0] - 1
    if machines not in (0, 1) or data[0] + machines < 1:
        return None
    domains = (DELEGATE,) * data[0] + (MACHINE,) * machines + (PEER,)
    chain = read_chain(swarm, data[1:], domains)
    return Pass(data, chain) if chain else None


def _is_possible(data: bytes) -> bool:
    return 1 < len(data) <= PASS_CAP and 1 <= data[0] <= DELEGATES_CAP
