"""DirectLinks: connections through relays become direct ones where they can, or are known not to.

libp2p punches a hole once, when a peer calls another through a relay, and only if both know by then
how they look from outside. So whoever is still relayed a moment later hangs up, waits, and calls
again. Machines of one home find each other at their private addresses, which libp2p does not tell.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from node.network.reachability import ReachState
from swarm.errors import PeerError, RemoteProtocolError, SwarmError
from swarm.hardware import RELAYED
from swarm.p2p.channel import StreamChannel
from swarm.p2p.link_kinds import OBSERVERS, is_direct, kind_of, observers_among
from swarm.records import Capability
from swarm.task_set import TaskSet

LOOK_SECONDS = 0.5
PAUSE_SECONDS = 1.3  # between hanging up and calling: at once both sides would end it
PUNCH_SECONDS = 2.0  # for a hole to be punched after the call
READY_SECONDS = 10.0  # for the other side to know how it looks from outside
TRIES = 2  # soon after each other
SELDOM_SECONDS = 600.0  # between later ones
STREAM_SECONDS = 4.0  # that a stream waits for a direct connection
AT_ONCE = 4  # peers

logger = logging.getLogger(__name__)

Capabilities = Callable[[], Mapping[str, Capability]]


class Lines(Protocol):
    """What it takes to know and change connections; `P2PDaemon` is the real one."""

    async def connected(self) -> Mapping[str, Sequence[str]]:
        """The peers that we are connected to, each with the multiaddrs that are in use."""

    async def disconnect(self, peer: str) -> None:
        """Drop the connections to a peer."""

    async def dial(self, peer: str, addresses: Sequence[str]) -> bool:
        """Open a connection at one of these multiaddrs, if none is open."""

    async def is_ready_to_punch(self, peer: str) -> bool:
        """Whether libp2p of a connected peer would punch a hole."""


@dataclass(slots=True)
class Effort:
    """What was done to reach a peer directly."""

    tries: int = 0
    tried_at: float = -math.inf
    task: "asyncio.Task[None] | None" = None

    @property
    def is_under_way(self) -> bool:
        """Whether a try has not ended."""
        return self.task is not None and not self.task.done()

    @property
    def is_due(self) -> bool:
        """Whether to try now."""
        if self.is_under_way:
            return False
        pause = 0.0 if self.tries < TRIES else SELDOM_SECONDS
        return time.monotonic() - self.tried_at >= pause


class DirectLinks:
    """Looks at the connections to known peers again and again, and mends what is relayed."""

    def __init__(self, lines: Lines, channel: StreamChannel, capabilities: Capabilities) -> None:
        self._lines = lines
        self._channel = channel
        self._capabilities = capabilities
        self._efforts: dict[str, Effort] = {}
        self._tasks = TaskSet()
        self.own: ReachState | None = None  # until it is known
        self.kinds: Mapping[str, str] = {}  # by peer, as of its last connection to us

    async def run(self, note: Callable[[Mapping[str, str]], None]) -> None:
        """Look again and again, and tell of changes; never ends."""
        async with self._tasks:
            while True:
                before = self.kinds
                with suppress(SwarmError):
                    await self.look()
                if self.kinds != before:
                    note(self.kinds)
                await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """See how peers are reached, and begin what is due; raises Unreachable."""
        connected = await self._lines.connected()
        known = self._others()
        before = {peer: kind for peer, kind in self.kinds.items() if peer in known}
        self.kinds = before | {
            peer: kind_of(connected[peer], are_both_private=self._is_between_routers(peer))
            for peer in known
            if connected.get(peer)
        }
        self._efforts = {peer: each for peer, each in self._efforts.items() if peer in known}
        for peer in sorted(known):
            if is_direct(connected.get(peer, ())):
                self._channel.leave_relay(peer)
            is_relayed = bool(connected.get(peer)) and self.kinds[peer] == RELAYED
            if is_relayed and self._may_try(peer, connected):
                self._begin(peer)

    async def wait_for(self, peer: str) -> None:
        """Let a stream to a peer wait, a little, while a direct connection may come about."""
        if self._is_under_way(peer) and (task := self._efforts[peer].task):
            await asyncio.wait([task], timeout=STREAM_SECONDS)

    def _others(self) -> dict[str, Capability]:
        return {p: c for p, c in self._capabilities().items() if p != self._channel.peer}

    def _is_under_way(self, peer: str) -> bool:
        if self.kinds.get(peer) != RELAYED:
            return False
        effort = self._efforts.get(peer)
        return effort is not None and effort.is_under_way

    def _is_between_routers(self, peer: str) -> bool:
        capability = self._others().get(peer)
        is_own = self.own is not None and not self.own.is_reachable
        return is_own and capability is not None and not capability.reachable

    def _may_try(self, peer: str, connected: Mapping[str, Sequence[str]]) -> bool:
        """Whether it is our turn, something may come of it, and no session would break for it."""
        if self.own is None or not self._channel.is_quiet(peer):
            return False
        if not self._efforts.setdefault(peer, Effort()).is_due:
            return False
        if len([each for each in self._efforts if self._is_under_way(each)]) >= AT_ONCE:
            return False
        other = self._others()[peer]
        if other.reachable:
            return bool(other.addresses)
        if not self.own.is_private:
            return False  # it dials us
        is_ours = self._channel.peer < peer
        return is_ours and (self._is_neighbour(other) or observers_among(connected) >= OBSERVERS)

    def _is_neighbour(self, other: Capability) -> bool:
        return self.own is not None and bool(self.own.home) and other.home == self.own.home

    def _begin(self, peer: str) -> None:
        effort = self._efforts[peer]
        effort.tries += 1
        effort.task = self._tasks.create("a direct connection", self._try(peer, effort))

    async def _try(self, peer: str, effort: Effort) -> None:
        other = self._others().get(peer)
        if other is None:
            return
        try:
            if other.reachable:
                await self._redial(peer, other.addresses)
            elif self._is_neighbour(other) and await self._redial(peer, other.local):
                return
            else:
                await self._punch(peer)
        finally:
            effort.tried_at = time.monotonic()

    async def _redial(self, peer: str, addresses: Sequence[str]) -> bool:
        """Dial a peer at addresses of its own: libp2p does nothing while a connection is open."""
        await self._lines.disconnect(peer)
        return await self._lines.dial(peer, addresses) and await self._is_direct(peer)

    async def _punch(self, peer: str) -> None:
        """Call a peer anew, once its libp2p knows how it looks from outside."""
        deadline = time.monotonic() + READY_SECONDS
        while not await self._lines.is_ready_to_punch(peer):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(LOOK_SECONDS)
        if await self._is_direct(peer):  # whoever called first did it well
            return
        await self._lines.disconnect(peer)
        await asyncio.sleep(PAUSE_SECONDS)
        await self._call(peer)
        deadline = time.monotonic() + PUNCH_SECONDS
        while time.monotonic() < deadline:
            if await self._is_direct(peer):
                logger.info("a hole is punched to %s", peer)
                return
            await asyncio.sleep(LOOK_SECONDS / 5)

    async def _call(self, peer: str) -> None:
        with suppress(PeerError, RemoteProtocolError):
            await self._channel.ask(peer, "alive", b"", timeout_seconds=READY_SECONDS)

    async def _is_direct(self, peer: str) -> bool:
        with suppress(SwarmError):
            return is_direct((await self._lines.connected()).get(peer, ()))
        return False
