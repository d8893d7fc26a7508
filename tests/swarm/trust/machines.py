"""A certified swarm in memory: its founder, machines, what they hold, and what delegates say."""

from dataclasses import dataclass, field

from swarm.trust.identity import Identity, swarm_id
from swarm.trust.membership import Holding, certify, found
from swarm.trust.register import REVOKED, make_entry

NOW = 1.8e9
FOUNDER = Identity.throwaway()
SWARM = swarm_id("home", FOUNDER.peer)


@dataclass
class One:
    """A machine with its key."""

    identity: Identity = field(default_factory=Identity.throwaway)
    held: Holding | None = None

    @property
    def id(self) -> str:
        return self.identity.peer

    @property
    def holding(self) -> Holding:
        assert self.held is not None
        return self.held

    @property
    def issuer(self) -> tuple[Holding, Identity]:
        return self.holding, self.identity

    def certified(self, other: "One | None" = None, *, as_delegate: bool = False) -> "One":
        """Another machine that this one has certified."""
        made = other or One()
        made.held = certify(SWARM, self.issuer, made.id, NOW, as_delegate=as_delegate)
        return made

    def revoking(self, other: "One", at: float = NOW) -> bytes:
        return make_entry(SWARM, self.issuer, REVOKED, other.id, at)


def founders_machine() -> One:
    machine = One()
    machine.held = found(SWARM, FOUNDER, machine.identity, NOW)
    return machine
