"""Reachability: what others find when they dial this node, and how it stands in the network then.

Who can be dialed is public: it answers where it listens, and carries connections to others. Who
cannot is private: others come through relays, at which it holds a place. That a place is still kept
only a dial through the relay tells, so a stranger of our own makes one now and then: a relay that
starts again, or finds out that it is public, forgets every place and tells nobody.
"""

import asyncio
import hashlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

from swarm.dht.board import Board, R
from swarm.errors import PeerError, RemoteProtocolError, SwarmError
from swarm.invites import peer_of_address
from swarm.p2p.addresses import is_private, own_multiaddrs
from swarm.p2p.channel import Channel
from swarm.p2p.dial_back import Finding, ask_dial_back
from swarm.p2p.link_kinds import is_direct
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import relays_among
from swarm.records import Capability, Relay

LOOK_SECONDS = 1.0
READ_SECONDS = 10.0  # between looks for relays on the board
CHECK_SECONDS = 600.0  # between dial-backs while nothing changes
AGAIN_SECONDS = 15.0  # after one that nobody answered
CHECKERS = 3  # peers asked at once
ENOUGH = 2  # peers whose word settles it
RELAYS_WANTED = 2
PLACE_SECONDS = 5.0  # for p2pd to get a place after its start
WATCH_SECONDS = 20.0  # between dials through our own relays
CHANGE_SECONDS, CHANGE_CAP_SECONDS = (
    20.0,
    600.0,
)  # between two changes of p2pd, at first and at most
LOCAL_CAP = 4
HOME_CHARACTERS = 16

logger = logging.getLogger(__name__)


class View(IntEnum):
    """How a peer sees us, the best for a dial-back first."""

    OUTSIDE = 0  # at our address outside, most likely
    ONCE_ASKED = 1  # the question opens a direct connection
    INSIDE = 2  # from our own network
    NONE = 3  # through a relay: it does not know where to dial


@dataclass(frozen=True, slots=True)
class Verdict:
    """What dial-backs came to."""

    is_reachable: bool
    is_from_outside: bool  # whether somebody saw us at an address that is not of a private network
    tried: int  # peers
    reached: int  # of these, how many got through
    at: tuple[str, ...]  # multiaddrs at which they did
    seen: str  # the IP address from which most saw us


@dataclass(frozen=True, slots=True)
class ReachState:
    """How a node can be reached, as it tells the others and its user."""

    is_private: bool
    verdict: Verdict | None
    relays: tuple[str, ...] = ()  # that work
    local: tuple[str, ...] = ()
    home: str = ""

    @property
    def is_reachable(self) -> bool:
        """Whether others open direct connections to us: what they found, else what we take on."""
        return not self.is_private if self.verdict is None else self.verdict.is_reachable


class Ways(Protocol):
    """What it takes to know and to change how we stand; `HeldNetwork` is the real one."""

    @property
    def network(self) -> Network:
        """How we stand in it now."""

    async def relays(self) -> Sequence[str]:
        """The relays at which p2pd says it holds a place."""

    async def is_reached_through(self, relay: str) -> bool:
        """Whether a stranger gets through to us by a relay."""

    async def connected(self) -> Mapping[str, Sequence[str]]:
        """The peers that we are connected to, each with the multiaddrs that are in use."""

    async def replace_daemon(self, network: Network) -> None:
        """Stand in the network otherwise."""


def verdict_of(findings: Sequence[Finding]) -> Verdict | None:
    """What findings come to; those from outside count, if there are any; None if nobody saw us."""
    outside = [each for each in findings if each.is_from_outside]
    counted = outside or [each for each in findings if each.seen]
    if not counted:
        return None
    reached = [each for each in counted if each.reached]
    hosts = [each.seen[0] for each in counted]
    return Verdict(
        is_reachable=2 * len(reached) >= len(counted),
        is_from_outside=bool(outside),
        tried=len(counted),
        reached=len(reached),
        at=tuple(dict.fromkeys(at for each in reached for at in each.reached)),
        seen=max(hosts, key=hosts.count),
    )


def home_of_host(swarm: str, host: str) -> str:
    """Equal for peers that are seen at one public address; says nothing else about it."""
    digest = hashlib.sha256(f"swarm home\0{swarm}\0{host}".encode())
    return digest.hexdigest()[:HOME_CHARACTERS]


async def find_relays(ways: Ways, board: Board) -> None:
    """Let a private p2pd hold places at several relays before anybody counts on us.

    Raises Unreachable, BadInput.
    """
    if not ways.network.is_private:
        return
    relays, capabilities = await board.read(Relay), await board.read(Capability)
    there = {peer: relay for peer, relay in relays.items() if not relay.leaving}
    known = relays_among(there, capabilities, ways.network.relays)
    if len(ways.network.relays) < RELAYS_WANTED <= len(known):
        peers = tuple(dict.fromkeys((*known, *ways.network.initial_peers)))
        await ways.replace_daemon(replace(ways.network, relays=known, initial_peers=peers))


class Reachability:
    """Finds out how we are reached, takes the role that follows, and keeps places at relays."""

    def __init__(
        self,
        ways: Ways,
        channel: Channel,
        board: Board,
        swarm: str,
        capabilities: Callable[[], Awaitable[Mapping[str, Capability]]],
        note: Callable[[ReachState], None],
    ) -> None:
        self._ways = ways
        self._channel = channel
        self._board = board
        self._swarm = swarm
        self._read_capabilities = capabilities
        self._note = note
        self._first_peers = ways.network.initial_peers
        self._first_relays = ways.network.relays
        self._capabilities: Mapping[str, Capability] = {}
        self._relays: Mapping[str, Relay] = {}
        self._read_at = -math.inf
        self._verdict: Verdict | None = None
        self._checked_at = -math.inf
        self._asked: frozenset[str] = frozenset()  # who answered then, or could not see us
        self._counted = 0  # answers of who has seen us
        self._hosts: tuple[str, ...] = ()  # our own addresses at the time
        self._working: tuple[str, ...] = ()
        self._watched: frozenset[str] = frozenset()  # relays
        self._watched_at = -math.inf
        self._changed_at = time.monotonic()
        self._pause = 0.0  # before the next change: none before the first one
        self._noted: ReachState | None = None

    @property
    def state(self) -> ReachState:
        """How we are reached, as far as we know."""
        verdict, network = self._verdict, self._ways.network
        is_home = verdict is not None and verdict.is_from_outside
        inner = [each for each in self._own() if is_private(each)]
        return ReachState(
            is_private=network.is_private,
            verdict=verdict,
            relays=self._working if network.is_private else (),
            local=tuple(inner)[:LOCAL_CAP] if is_home else (),
            home=home_of_host(self._swarm, verdict.seen) if verdict and is_home else "",
        )

    async def run(self) -> None:
        """Look again and again; never ends."""
        while True:
            try:
                await self.look()
            except SwarmError as error:
                logger.warning("whether others reach us is not known: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Check and change what is due; raises SwarmError."""
        await self._read()
        checkers = frozenset({*self._capabilities, *self._relays})
        if self._is_due(checkers):
            await self._check(checkers)
        await self._take_role()
        if self._ways.network.is_private:
            await self._see_to_relays()
        if self.state != self._noted:
            self._noted = self.state
            self._note(self.state)

    # ------------------------------------------------------------------ dial-back

    async def _read(self) -> None:
        """Learn who is there, from others than ourselves."""
        if time.monotonic() - self._read_at > READ_SECONDS:
            self._read_at = time.monotonic()
            self._relays = self._others(await self._board.read(Relay))
        self._capabilities = self._others(await self._read_capabilities())

    def _others(self, records: Mapping[str, R]) -> dict[str, R]:
        return {peer: each for peer, each in records.items() if peer != self._channel.peer}

    def _is_due(self, checkers: frozenset[str]) -> bool:
        age = time.monotonic() - self._checked_at
        if not checkers or age < AGAIN_SECONDS:
            return bool(checkers) and self._verdict is None and age > AGAIN_SECONDS
        is_news = self._counted < ENOUGH and bool(checkers - self._asked)
        return is_news or self._hosts != self._own() or age > CHECK_SECONDS

    async def _check(self, checkers: frozenset[str]) -> None:
        self._checked_at, self._hosts = time.monotonic(), self._own()
        connected = await self._ways.connected()
        views = {peer: self._view_of(peer, connected.get(peer, ())) for peer in checkers}
        seeing = [peer for peer, view in views.items() if view is not View.NONE]
        asked = sorted(seeing, key=lambda peer: (views[peer], random.random()))[:CHECKERS]
        found = await asyncio.gather(*map(self._finding, asked))
        findings = {p: f for p, f in zip(asked, found, strict=True) if f is not None}
        self._asked = checkers - set(seeing) | findings.keys()
        self._counted = sum(bool(each.seen) for each in findings.values())
        self._verdict = verdict_of(list(findings.values())) or self._verdict

    def _view_of(self, peer: str, addresses: Sequence[str]) -> View:
        capability = self._capabilities.get(peer)  # a relay has none
        return view_of(addresses, can_be_dialed=capability is None or capability.reachable)

    async def _finding(self, peer: str) -> Finding | None:
        try:
            return await ask_dial_back(self._channel, peer, self._ports())
        except (PeerError, RemoteProtocolError) as error:
            logger.debug("no dial-back by %s: %s", peer, error)
            return None

    def _ports(self) -> list[int]:
        network = self._ways.network
        named = [each.split("/")[4] for each in network.announce if "/tcp/" in each]
        return list(dict.fromkeys([network.port, *(int(p) for p in named if p.isdigit())]))

    def _own(self) -> tuple[str, ...]:
        network = self._ways.network
        found = own_multiaddrs(network.host, network.port)
        return tuple(each for each in found if not _is_loopback(each))

    # ------------------------------------------------------------------ role and relays

    async def _take_role(self) -> None:
        verdict = self._verdict
        if verdict is None or not verdict.is_from_outside:
            return
        if verdict.is_reachable is self._ways.network.is_private and self._may_change():
            role = "public" if verdict.is_reachable else "private"
            logger.info("%d of %d peers reach us: %s", verdict.reached, verdict.tried, role)
            await self._change(is_private=not verdict.is_reachable)

    async def _see_to_relays(self) -> None:
        held = frozenset(await self._ways.relays())
        now = time.monotonic()
        if held and (held != self._watched or now - self._watched_at > WATCH_SECONDS):
            self._watched, self._watched_at = held, now
            kept = await asyncio.gather(*map(self._ways.is_reached_through, sorted(held)))
            pairs = zip(sorted(held), kept, strict=True)
            self._working = tuple(relay for relay, is_kept in pairs if is_kept)
        elif not held and now - self._changed_at > PLACE_SECONDS:
            self._working, self._watched = (), held
        if self._working and self._pause:
            self._pause = CHANGE_SECONDS
        if self._wants_others() and self._may_change():
            lacking = "a second relay" if self._working else "any"
            logger.info("no place at %s: starting p2pd again", lacking)
            await self._change(is_private=True)

    def _wants_others(self) -> bool:
        """Whether p2pd has to start again: to get a place back, or at a relay it does not know.

        It takes no other relay than those that it was started with.
        """
        if time.monotonic() - self._changed_at < PLACE_SECONDS:
            return False
        if not self._working:
            return bool(self._usable_relays())
        found = {peer_of_address(each) for each in self._usable_relays()}
        given = {peer_of_address(each) for each in self._ways.network.relays}
        return len(self._working) < RELAYS_WANTED and not found <= given

    def _usable_relays(self) -> tuple[str, ...]:
        """What may carry connections to us, first what does so already."""
        there = {peer: relay for peer, relay in self._relays.items() if not relay.leaving}
        known = (*self._first_relays, *self._first_peers)
        found = relays_among(there, self._capabilities, known)
        return relays_among({}, {}, (*self._working, *found))

    def _may_change(self) -> bool:
        return time.monotonic() - self._changed_at >= self._pause

    async def _change(self, *, is_private: bool) -> None:
        self._changed_at = time.monotonic()
        self._pause = min(max(2 * self._pause, CHANGE_SECONDS), CHANGE_CAP_SECONDS)
        relays = self._usable_relays()
        network = replace(
            self._ways.network,
            is_private=is_private,
            relays=relays if is_private else (),
            initial_peers=tuple(dict.fromkeys((*relays, *self._first_peers))),
        )
        self._watched = frozenset()
        self._working = tuple(each for each in self._working if each in network.relays)
        await self._ways.replace_daemon(network)


def view_of(addresses: Sequence[str], *, can_be_dialed: bool) -> View:
    """How a peer sees us that we are connected to at these multiaddrs."""
    direct = [each for each in addresses if is_direct([each])]
    if not addresses and can_be_dialed:
        return View.ONCE_ASKED
    if not direct:
        return View.NONE
    return View.INSIDE if all(map(is_private, direct)) else View.OUTSIDE


def _is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))
