"""Members: this program's own pass in a certified swarm, and the passes that others have shown."""

from collections.abc import Callable
from dataclasses import dataclass

from swarm.errors import BadInvite, PeerRefused
from swarm.trust.identity import Identity
from swarm.trust.membership import (
    MACHINE_SECONDS,
    PEER_SECONDS,
    Holding,
    certify,
    holding_of,
    pass_for,
    pass_of,
)
from swarm.trust.network_clock import CLOCK
from swarm.trust.passes import Passes
from swarm.trust.register import BOUGHT, REVOKED, SPENT, Register, make_entry
from swarm.trust.tickets import Ticket, read_request

RENEWED_SECONDS = PEER_SECONDS / 2  # before its end a pass is made anew, if that adds anything
ENDING_SECONDS = MACHINE_SECONDS / 4  # before its end a machine asks for a new certificate
MACHINES_OF_A_TICKET = 64  # so that nobody can lay up certificates without end
REVOKED_WORDS = "The machine of this peer is revoked."


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine in a swarm: its key, and what certifies it."""

    identity: Identity
    holding: Holding


class Members:
    """Who is a member, for one peer of a certified swarm; and, at a delegate, who becomes one."""

    def __init__(
        self,
        swarm: str,
        peer: str,
        machine: Machine,
        register: Register,
        passes: Passes | None = None,
        clock: Callable[[], float] = CLOCK.now,
    ) -> None:
        self.swarm, self.machine, self.register = swarm, machine, register
        self.passes = Passes(swarm) if passes is None else passes
        self._peer, self._clock = peer, clock
        self._own = pass_for(swarm, machine.holding, machine.identity, peer, clock())

    @property
    def own_pass(self) -> bytes:
        """What we show to others; renewed in time."""
        now, holding = self._clock(), self.machine.holding
        if self._own.chain.until < min(now + RENEWED_SECONDS, holding.chain.until):
            self._own = pass_for(self.swarm, holding, self.machine.identity, self._peer, now)
        return self._own.data

    @property
    def is_revoked(self) -> bool:
        """Whether this machine is."""
        return self.register.revokes(self._own.chain)

    def require_member(self) -> None:
        """Raise BadInvite if this machine is revoked."""
        if self.is_revoked:
            raise BadInvite(
                "This machine was revoked: the swarm has nothing to do with it any more.",
                "Ask its founder if that is a mistake.",
            )

    def problem_of(self, peer: str, shown: bytes) -> str:
        """Why a peer that shows this pass is no member; empty if it is one."""
        found = pass_of(self.swarm, shown)
        if found is None or found.chain.subject != peer:
            return "It shows no certificate of this swarm."
        self.passes.note(found)
        if found.chain.until < self._clock():
            return "Its certificate has expired."
        return self.problem_with(peer)

    def problem_with(self, peer: str) -> str:
        """Why we do not speak with a peer of whom we have seen a pass; empty if there is none."""
        found = self.passes.get(peer)
        return REVOKED_WORDS if found and self.register.revokes(found.chain) else ""

    def has_shown(self, peer: str) -> bool:
        """Whether a peer has shown its pass here."""
        return self.passes.get(peer) is not None

    def has_revoked(self, peer: str, shown: bytes) -> bool:
        """Whether a peer that shows this pass was a member, and is none any more."""
        found = pass_of(self.swarm, shown)
        return (
            found is not None and found.chain.subject == peer and self.register.revokes(found.chain)
        )

    def pass_of(self, peer: str) -> bytes:
        """What a peer has shown, or we show; raises PeerRefused if it was not here."""
        if peer == self._peer:
            return self.own_pass
        if found := self.passes.get(peer):
            return found.data
        raise PeerRefused("No certificate of that peer was seen here.")

    def peers(self) -> list[str]:
        """Whose passes were seen here, the latest first."""
        return [each.chain.subject for each in self.passes.latest_first()]

    def delegates(self) -> list[str]:
        """Peers whose machines may certify others, those seen last first."""
        return [p.chain.subject for p in self.passes.latest_first() if p.is_of_delegate]

    def redeem(self, request: bytes) -> bytes:
        """As a delegate: certify the machine that asks with a ticket; raises PeerRefused.

        There is no await in here, and the register is on the disk before the answer leaves: of two
        machines that come with the same one-time ticket to us, the second is refused.
        """
        if not self.machine.holding.is_delegate or self.is_revoked:
            raise PeerRefused("This peer may not certify machines.")
        machine, ticket = self.require_sound(request)
        issuer = self.machine.holding, self.machine.identity
        try:
            delegate = ticket.makes_delegate
            made = certify(self.swarm, issuer, machine, self._clock(), as_delegate=delegate)
        except ValueError as error:
            raise PeerRefused(f"This delegate cannot do that: {error}.") from error
        kind = SPENT if ticket.is_once else BOUGHT
        if machine not in (self.register.spender(ticket), *self.register.bought_by(ticket)):
            self.note(make_entry(self.swarm, issuer, kind, machine, self._clock(), ticket.id))
        return made.data

    def require_sound(self, request: bytes) -> tuple[str, Ticket]:
        """The machine that asks and its ticket, if nothing known here speaks against them.

        Raises PeerRefused.
        """
        read = read_request(self.swarm, request)
        if read is None:
            raise PeerRefused("The invite's ticket is not genuine.")
        if problem := self._problem_of_ticket(*read):
            raise PeerRefused(problem)
        return read

    @property
    def seconds_left(self) -> float:
        """How long this machine's certificate holds."""
        return self.machine.holding.chain.until - self._clock()

    @property
    def is_ending(self) -> bool:
        """Whether it is time for a new one."""
        return self.seconds_left < ENDING_SECONDS

    def issuers(self) -> list[str]:
        """Peers of the machine that has certified this one, those seen last first."""
        issuer = self.machine.holding.chain.peers[-2]
        return [p.chain.subject for p in self.passes.latest_first() if p.machine == issuer]

    def renew(self, peer: str) -> bytes:
        """As a delegate: certify the machine of a peer anew, if we have before.

        Nobody else does: who is out with the delegate that certified him must not get round that.
        Raises PeerRefused.
        """
        found, own = self.passes.get(peer), self.machine.holding
        if found is None or self.problem_with(peer) or self.is_revoked:
            raise PeerRefused("Only members are certified anew.")
        if not own.is_delegate or found.chain.peers[-3] != own.machine:
            raise PeerRefused("Another machine has certified that one.")
        issuer = own, self.machine.identity
        as_delegate = found.is_of_delegate
        made = certify(self.swarm, issuer, found.machine, self._clock(), as_delegate=as_delegate)
        return made.data

    def take_renewed(self, data: bytes) -> Holding | None:
        """Go on with a later certificate of this machine; None if that is none."""
        made, own = holding_of(self.swarm, data), self.machine.holding
        if made is None or made.machine != own.machine or made.chain.until <= own.chain.until:
            return None
        self.machine = Machine(self.machine.identity, made)
        return made

    def revoke(self, machine: str) -> None:
        """As a delegate: note that a machine is revoked; raises OSError."""
        issuer = self.machine.holding, self.machine.identity
        self.note(make_entry(self.swarm, issuer, REVOKED, machine, self._clock()))

    def note(self, entry: bytes) -> None:
        """Take an entry of our own, and keep it."""
        self.register.add([entry], self._clock())
        self.register.save()

    def hear_register(self, data: bytes) -> bool:
        """Take a peer's entries and keep them; whether one was news.

        Raises RemoteProtocolError.
        """
        is_news = self.register.add_all(data, self._clock())
        if is_news:
            self.register.save()
        return is_news

    def _problem_of_ticket(self, machine: str, ticket: Ticket) -> str:
        register, now = self.register, self._clock()
        if register.names(machine):
            return "This machine is revoked."
        if register.revokes(ticket.issuer.chain):
            return "The invite is void: who made it is revoked."
        if now > min(ticket.until, ticket.issuer.chain.until):
            return "The invite has expired."
        if ticket.made <= register.tickets_since:
            return "The invite is void: a machine was revoked after it was made."
        if ticket.is_once and register.spender(ticket) not in ("", machine):
            return "The invite was for one machine, and another one has used it."
        if not ticket.is_once and self._is_used_up(machine, ticket):
            return f"The invite has let in {MACHINES_OF_A_TICKET} machines, and lets in no more."
        return ""

    def _is_used_up(self, machine: str, ticket: Ticket) -> bool:
        buyers = self.register.bought_by(ticket)
        return machine not in buyers and len(buyers) >= MACHINES_OF_A_TICKET
