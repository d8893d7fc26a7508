"""Bootstrap: the way into a swarm, and back: tries what invite and address book name, and again.

Addresses are tried a few at a time, soon at first and then ever less often. Who is alone also
knocks now and then: one TCP connection, so that a peer that comes back is found within seconds.
Who has company looks for remembered peers that are missing: else a network that fell into two
parts would stay two, for each part is content with itself.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from hivemind.dht.protocol import ValidationError

from swarm.errors import BadInput, Unreachable
from swarm.invites import peer_of_address
from swarm.p2p.address_book import AddressBook
from swarm.p2p.addresses import CIRCUIT, readable
from swarm.p2p.p2p_daemon import P2PDaemon

PAUSES_SECONDS = (5.0, 15.0, 45.0, 120.0, 300.0)  # between tries; the last one from then on
KNOCK_SECONDS, KNOCKS = 20.0, 8  # between knocks of who is alone, and addresses
LOOK_SECONDS = 1.0  # between looks at who is there
TRIED, TRIED_IN_COMPANY = 32, 8  # addresses in a round
AT_ONCE = 8  # peers that are tried at a time
OTHERS_SECONDS = 1.0  # for further peers, once one has answered
ROUND_SECONDS, ALONE_SECONDS = 15.0, 5.0  # for all tries; for the first ones of who may be alone
GREETINGS, GREETING_SECONDS = 2, 0.5  # of a peer that may just be starting; between them
SHOWN = 3  # addresses in a line
ADVICE = "ask for a fresh invite, or check the network"

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
Greet = Callable[[str], Awaitable[bool]]  # whether a peer lets us in; raises ValidationError
Present = Callable[[], frozenset[str]]  # the peers of the swarm that are there


@dataclass(frozen=True, slots=True)
class KnownPeers:
    """Whom a peer can turn to when it starts."""

    invited: tuple[str, ...] = ()  # multiaddrs of its invite
    book: AddressBook | None = None  # what is remembered of the swarm
    say_alone: Say | None = None  # tells that nobody answers; without it that is an error


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of an address."""

    address: str
    problem: str = ""  # in a few words; "" if its peer let us in
    refusal: ValidationError | None = None
    is_heard: bool = False  # somebody listens there: a knock would say nothing new
    is_stranger: bool = False  # who answers is no peer of this swarm, or our key is wrong

    def __str__(self) -> str:
        direct, circuit, _ = self.address.partition(CIRCUIT)
        return f"{readable(direct)}{' as a relay' if circuit else ''} {self.problem}"


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round of tries."""

    attempts: tuple[Attempt, ...] = ()

    @property
    def welcomes(self) -> tuple[Attempt, ...]:
        """Those that let us in."""
        return tuple(each for each in self.attempts if not each.problem)

    @property
    def refusal(self) -> ValidationError | None:
        """Why we are kept out; one peer that calls our clock wrong is outvoted by another."""
        refusals = [each.refusal for each in self.attempts if each.refusal]
        return refusals[0] if len(refusals) > len(self.welcomes) else None

    def strangers(self, among: Collection[str]) -> bool:
        """Whether one of these addresses is answered by somebody who is not of this swarm."""
        return any(each.is_stranger and each.address in among for each in self.attempts)

    def __str__(self) -> str:
        """The addresses that let nobody in."""
        tried = [str(each) for each in self.attempts if each.problem]
        more = f" and {len(tried) - SHOWN} more" if len(tried) > SHOWN else ""
        return ", ".join(tried[:SHOWN]) + more


class TrySchedule:
    """When to try next: soon after a loss, then ever less often."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.begin()

    def begin(self, pause_seconds: float = PAUSES_SECONDS[0]) -> None:
        """From the first pause on again, or at once."""
        self._tries, self._due_at = 0, self._clock() + pause_seconds

    def note_try(self) -> None:
        """The next one is due after a longer pause."""
        self._tries = min(self._tries + 1, len(PAUSES_SECONDS) - 1)
        self._due_at = self._clock() + PAUSES_SECONDS[self._tries]

    @property
    def pause_seconds(self) -> float:
        """How long until the next try."""
        return max(0.0, self._due_at - self._clock())

    @property
    def is_due(self) -> bool:
        """Whether it is time to try."""
        return self._clock() >= self._due_at


class Bootstrap:
    """Keeps one peer in touch with its swarm."""

    def __init__(
        self,
        daemon: P2PDaemon,
        greet: Greet,
        present: Present,
        known: KnownPeers,
        book: AddressBook,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._daemon, self._greet, self._present, self._book = daemon, greet, present, book
        self._invited = tuple(dict.fromkeys(known.invited))
        self._may_be_alone = known.say_alone is not None
        self._say = known.say_alone or logger.warning
        self._clock, self._schedule = clock, TrySchedule(clock)
        self._knock_at = clock() + KNOCK_SECONDS
        self._silent: tuple[str, ...] = ()  # addresses where nothing listened the last time
        self._were_present: frozenset[str] = frozenset()
        self._rounds = 0
        self._told_alone = False
        self.joined = asyncio.Event()

    async def enter(self) -> Round:
        """Try once; raises BadInput for a wrong clock, and Unreachable.

        Who may be alone is refused only where the invite leads to somebody of another swarm.
        """
        may_be_alone = self._may_be_alone
        found = await self._try(frozenset(), ALONE_SECONDS if may_be_alone else ROUND_SECONDS)
        self._schedule.begin()
        if found.refusal:
            raise explained(found.refusal)
        if found.welcomes:
            self._note_company(frozenset(peer_of_address(each.address) for each in found.welcomes))
        elif found.attempts and not (may_be_alone and not found.strangers(self._invited)):
            raise nobody(str(found))
        elif found.attempts:
            self._tell_alone(found)
        return found

    def hurry(self) -> None:
        """Every connection was lost: try at once."""
        self._schedule.begin(0.0)

    async def keep(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Come back whenever contact is lost, and find who is missing; never ends."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            present = self._present()
            if await self._look(present) or (present and not self._were_present):
                await refresh()
                present = self._present()
            self._note_company(present)

    async def _look(self, present: frozenset[str]) -> bool:
        """Try what is due; whether somebody let us in."""
        if self._were_present - present:
            self._schedule.begin()
        is_due = self._schedule.is_due or (not present and await self._hears_knock())
        if not is_due or not self._missing(present):
            return False
        found = await self._try(present, ROUND_SECONDS)
        self._schedule.note_try()
        if not (found.welcomes or present or self._present()):
            self._tell_alone(found)
        return bool(found.welcomes)

    def _note_company(self, present: frozenset[str]) -> None:
        if present:
            self.joined.set()
            if self._told_alone:
                who = "1 other peer is" if len(present) == 1 else f"{len(present)} other peers are"
                self._say(f"joined: {who} there")
            self._told_alone = False
        self._were_present = present

    def _missing(self, present: Collection[str]) -> tuple[str, ...]:
        """Addresses of peers that we know of and that are not there, the best first."""
        here = {*present, self._daemon.peer}
        invited = (each for each in self._invited if peer_of_address(each) not in here)
        return tuple(dict.fromkeys((*invited, *self._book.addresses(without=here))))

    async def _try(self, present: frozenset[str], seconds: float) -> Round:
        """Try the addresses of peers that are missing, for so long at most."""
        most = TRIED_IN_COMPANY if present else TRIED
        addresses = chosen(self._missing(present), most, self._rounds)
        self._rounds += 1
        found = {each: Attempt(each, "no answer") for each in addresses}
        gate = asyncio.Semaphore(AT_ONCE)

        async def visit(peer: str, its: Sequence[str]) -> bool:
            async with gate:
                return await self._visit(peer, its, found)

        await _first_and_others([visit(*each) for each in by_peer(addresses)], seconds)
        self._silent = tuple(each.address for each in found.values() if not each.is_heard)
        for each in found.values():
            if not each.problem:
                self._book.note_met(peer_of_address(each.address), [each.address])
        return Round(tuple(found.values()))

    async def _visit(self, peer: str, addresses: Sequence[str], found: dict[str, Attempt]) -> bool:
        """Dial a peer, and ask to be let in; whether it does."""

        async def dial(address: str) -> bool:
            if problem := await self._daemon.problem_at(address):
                found[address] = Attempt(address, problem)
                return False
            found[address] = Attempt(address, "no answer", is_heard=True)
            try:
                await self._daemon.connect(address)
            except Unreachable as error:
                found[address] = Attempt(address, error.cause, is_heard=True)
                return False
            answered.append(address)
            return True

        answered: list[str] = []
        await _first_and_others([dial(each) for each in addresses], ROUND_SECONDS, 0.0)
        if not answered:
            return False
        found[answered[0]] = attempt = await self._asked(peer, answered[0])
        return not attempt.problem

    async def _asked(self, peer: str, address: str) -> Attempt:
        for number in range(GREETINGS):
            await asyncio.sleep(number * GREETING_SECONDS)
            try:
                if await self._greet(peer):
                    return Attempt(address, is_heard=True)
            except ValidationError as error:
                return Attempt(address, "refuses us", error, is_heard=True)
        words = "answers, but not for this swarm"
        return Attempt(address, words, is_heard=True, is_stranger=True)

    async def _hears_knock(self) -> bool:
        """Whether somebody listens at last where nobody did, asked now and then."""
        if self._clock() < self._knock_at:
            return False
        doors = self._silent[:KNOCKS]
        problems = await asyncio.gather(*map(self._daemon.problem_at, doors))
        self._knock_at = self._clock() + KNOCK_SECONDS
        return "" in problems

    def _tell_alone(self, found: Round) -> None:
        """Say what was tried and what to do."""
        self._told_alone = True
        tried, pause = len(found.attempts), self._schedule.pause_seconds
        what = f"none of {tried} addresses answers" if tried > 1 else "the only address is silent"
        if found.refusal:
            error = explained(found.refusal)
            self._say(f"alone: {error.cause} {error.next_step} Trying again in {pause:.0f} s")
            return
        self._say(f"alone: {what} ({found}); trying again in {pause:.0f} s; {ADVICE}")


def chosen(addresses: Sequence[str], most: int, number: int) -> list[str]:
    """So many addresses for a round: the best half always, of the rest others in each round."""
    half = most // 2
    best, rest = list(addresses[:half]), list(addresses[half:])
    start = number * half % len(rest) if rest else 0
    return best + (rest[start:] + rest[:start])[: most - half]


def by_peer(addresses: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Each peer with its addresses, in their order."""
    peers: dict[str, list[str]] = {}
    for address in addresses:
        peers.setdefault(peer_of_address(address), []).append(address)
    return list(peers.items())


def explained(error: ValidationError) -> BadInput | Unreachable:
    """Why the swarm's peers keep us out, as a person understands it."""
    clocks = re.search(r"local: ([\d.]+), peer: ([\d.]+)", str(error))
    if clocks is None:
        return Unreachable(
            "The swarm's peers cannot reach this machine.",
            "Forward a port of your router to it and say so:"
            " --port 4001 --announce YOUR-PUBLIC-ADDRESS:4001",
        )
    offset = float(clocks[1]) - float(clocks[2])
    side = "ahead of" if offset > 0 else "behind"
    return BadInput(
        f"This machine's clock is {abs(offset):.1f} s {side} the swarm's.",
        "Set the clock (for example with NTP) and try again.",
    )


def nobody(tried: str) -> Unreachable:
    """The error for an invite, and a book, of which no peer lets us in."""
    return Unreachable(
        f"No peer in the invite answers ({tried}).",
        "Check the network, or ask for a fresh invite; a private swarm's key has to be right.",
    )


async def _first_and_others(
    works: "Sequence[Awaitable[bool]]", seconds: float, others_seconds: float = OTHERS_SECONDS
) -> None:
    """Wait until one work succeeds and a little for the others; what is left is cancelled."""
    waiting = {asyncio.ensure_future(work) for work in works}
    tasks, deadline = set(waiting), time.monotonic() + seconds
    try:
        while waiting:
            left = deadline - time.monotonic()
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            if any(task.result() for task in done):
                deadline = min(deadline, time.monotonic() + others_seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
