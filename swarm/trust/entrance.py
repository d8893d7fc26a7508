"""Entrance: what somebody brings who enters a swarm, and how a machine becomes a member."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from swarm.errors import BadInvite
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine, Members
from swarm.trust.membership import Holding, holding_of
from swarm.trust.network_clock import CLOCK
from swarm.trust.tickets import ask_with

Redeem = Callable[[bytes], Awaitable[bytes]]  # a request for the holding that it buys


@dataclass(frozen=True, slots=True)
class Entrance:
    """Which swarm, what buys a membership, and where that is kept."""

    swarm: str
    ticket: bytes = field(default=b"", repr=False)
    state: Path | None = None  # None: certified swarms cannot be entered

    async def members(self, peer: str, redeem: Redeem) -> Members | None:
        """This machine as a member, bought if need be; None in a swarm that certifies nobody.

        Raises BadInvite, BadInput, and whatever `redeem` does.
        """
        if self.state is None:
            return None
        machines = MachineState(self.state)
        holding = machines.holding(self.swarm)
        if holding is None and not self.ticket:
            return None
        register, identity = machines.register(self.swarm), machines.identity()
        if holding is None or holding.machine != identity.peer or _is_over(holding):
            holding = self._read(await redeem(self._request(identity.peer)), identity.peer)
            machines.keep(self.swarm, holding)
        passes = machines.passes(self.swarm)
        members = Members(self.swarm, peer, Machine(identity, holding), register, passes)
        members.require_member()
        return members

    def _request(self, machine: str) -> bytes:
        try:
            return ask_with(self.swarm, self.ticket, machine)
        except ValueError as error:
            raise BadInvite(
                "This machine's certificate of the swarm is over, and the invite buys no other.",
                "Ask for a fresh invite: `swarm invite` makes it.",
            ) from error

    def _read(self, data: bytes, machine: str) -> Holding:
        holding = holding_of(self.swarm, data)
        if holding is None or holding.machine != machine or _is_over(holding):
            raise BadInvite("What the swarm's delegate granted is no certificate of this machine.")
        return holding


def certificate_needed() -> BadInvite:
    """The error for who comes to a certified swarm with nothing that buys a membership."""
    return BadInvite(
        "The swarm certifies its members, and this invite buys no certificate.",
        "Ask for a fresh invite: `swarm invite` makes it on the founder's machine.",
    )


def _is_over(holding: Holding) -> bool:
    return holding.chain.until < CLOCK.now()
