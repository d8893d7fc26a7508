"""Failure detector: what our own questions to peers brought, and whom to ask next.

In a crowd everybody asks less often, so that what a peer asks, and what it is asked, stays bounded.
"""

import math
from collections.abc import Callable, Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

MISSES = 2  # unanswered questions in a row that make a peer lost
AGAIN_SECONDS = 5.0  # between questions to a lost peer whose record is still there, at first
AGAIN_CAP_SECONDS = 600.0  # and after many that it did not answer
LATELY_SECONDS = 30.0  # an answer of that age still shows that a peer is there
POLL_SECONDS = 8.0  # between questions to peers that might plan one day
POLL_CAP_SECONDS = 15.0  # in a crowd: half of LATELY_SECONDS
SELDOM_SECONDS = 60.0  # between questions to peers that may not plan, for a standby
BEST_ASKED = 8  # of those who might plan, by a standby
ASKED_AT_ONCE = 16  # peers in one look besides those that matter
ASKED_BY_PLANNER = 128
PLANNER_RATE = 250.0  # questions a second that a planner asks those who answer
CROWD = 100  # peers from which on everybody asks, and looks, less often


@dataclass(slots=True)
class Contact:
    """What our own questions to a peer brought; times are monotonic."""

    misses: int = 0  # in a row
    asked_at: float = -math.inf
    heard_at: float = -math.inf
    term: int = 0  # of the plan that it says it follows
    proof: bytes = b""  # that it may plan

    @property
    def is_lost(self) -> bool:
        """Whether it failed to answer too often."""
        return self.misses >= MISSES

    @property
    def is_met(self) -> bool:
        """Whether it has ever answered, and is not lost."""
        return self.heard_at > -math.inf and not self.is_lost

    def is_heard(self, now: float) -> bool:
        """Whether it has answered lately."""
        return not self.is_lost and now - self.heard_at < LATELY_SECONDS

    def is_pressing(self, now: float, pause: float) -> bool:
        """Whether a peer that matters is asked again: at once, if it has just failed to answer."""
        return self.misses > 0 or now - self.asked_at >= pause

    def is_due(self, now: float) -> bool:
        """Whether a peer that does not answer is asked again: ever later, once it is lost."""
        pause = AGAIN_SECONDS * 2.0 ** min(self.misses - MISSES, 10) if self.is_lost else 0.0
        return now - self.asked_at > min(pause, AGAIN_CAP_SECONDS)


UNKNOWN = Contact()  # of a peer that was never asked; nobody changes it


class Contacts:
    """What became of our questions to every peer; whoever wants to know need not look at all."""

    def __init__(self) -> None:
        self._of: dict[str, Contact] = {}  # whom we asked longest ago first
        self._heard: dict[str, None] = {}  # who answered, longest ago first
        self.lost: frozenset[str] = frozenset()
        self.missed: dict[str, None] = {}  # who has just failed to answer, and still counts
        self.changes = 0  # of what we make of a peer, so that others need not compare

    def __getitem__(self, peer: str) -> Contact:
        return self._of[peer]

    def __contains__(self, peer: object) -> bool:
        return peer in self._of

    @property
    def peers(self) -> KeysView[str]:
        """Who was ever asked."""
        return self._of.keys()

    def get(self, peer: str) -> Contact | None:
        """What is known of a peer, if it was ever asked."""
        return self._of.get(peer)

    def items(self) -> Iterable[tuple[str, Contact]]:
        """All of them, whom we asked longest ago first."""
        return self._of.items()

    def note_question(self, peer: str, now: float) -> Contact:
        """A peer is asked now."""
        contact = self._of.pop(peer, None) or Contact()
        self._of[peer] = contact
        contact.asked_at = now
        return contact

    def note_silence(self, peer: str, contact: Contact) -> None:
        """A peer has not answered."""
        contact.misses += 1
        if self._of.get(peer) is not contact:  # it is not on the board any more
            return
        if contact.misses < MISSES:
            self.missed[peer] = None
        elif peer not in self.lost:
            self.changes += 1
            self.missed.pop(peer, None)
            self.lost |= {peer}

    def note_answer(self, peer: str, contact: Contact, term: int, proof: bytes, now: float) -> None:
        """A peer has answered: it follows the plan of a term, and has a proof that it may plan."""
        was_heard = contact.is_heard(now)
        self.changes += not was_heard or (term, proof) != (contact.term, contact.proof)
        contact.misses, contact.heard_at, contact.term, contact.proof = 0, now, term, proof
        if self._of.get(peer) is not contact:
            return
        self._heard.pop(peer, None)
        self._heard[peer] = None
        self.missed.pop(peer, None)
        if peer in self.lost:
            self.lost -= {peer}

    def heard_lately(self, now: float) -> dict[str, Contact]:
        """Who has answered lately and not failed to since."""
        oldest = now - LATELY_SECONDS
        while self._heard and not self._is_heard_since(next(iter(self._heard)), oldest):
            del self._heard[next(iter(self._heard))]
        return {peer: self._of[peer] for peer in self._heard if peer not in self.lost}

    def forget_others(self, here: AbstractSet[str]) -> None:
        """Keep nothing of anybody else."""
        for peer in self._of.keys() - here:
            contact = self._of.pop(peer)
            self.changes += contact.heard_at > -math.inf
            self._heard.pop(peer, None)
            self.missed.pop(peer, None)
            self.lost -= {peer}

    def _is_heard_since(self, peer: str, oldest: float) -> bool:
        return self._of[peer].heard_at > oldest


def crowding(peers: int) -> float:
    """How many times less often everybody asks and looks in a swarm of so many peers."""
    return max(1.0, peers / CROWD)


def asked_by_planner(there: Iterable[str], contacts: Contacts, now: float) -> list[str]:
    """Everybody who answers, in a crowd a share of them; and who has not answered, in turn."""
    known = {peer: contacts.get(peer) or UNKNOWN for peer in there}
    pause = len(known) / PLANNER_RATE if len(known) > CROWD else 0.0

    met = [p for p, contact in known.items() if contact.is_met and contact.is_pressing(now, pause)]
    unmet = [p for p, contact in known.items() if not contact.is_met and contact.is_due(now)]
    longest = sorted(unmet, key=lambda peer: known[peer].asked_at)
    return [*met, *longest[:ASKED_BY_PLANNER]]


def asked_by_standby(
    ranked: Mapping[str, int], contacts: Contacts, now: float, may_plan: Callable[[str], bool]
) -> list[str]:
    """The best of those who answer and may plan; of all others some in turn.

    `ranked` are all peers, the best in rank first. Whoever was never asked comes before others, in
    that order: so that all in a crowd soon agree who is next.
    """
    stretch = crowding(len(ranked))
    poll = min(POLL_SECONDS * stretch, POLL_CAP_SECONDS)
    most = max(1, round(ASKED_AT_ONCE / stretch**2))
    able = (p for p in ranked if p in contacts and contacts[p].is_met and may_plan(p))
    best = [p for p in islice(able, BEST_ASKED) if contacts[p].is_pressing(now, poll)]
    strangers = ranked.keys() - contacts.peers
    fresh = list(islice((peer for peer in ranked if peer in strangers), most)) if strangers else []
    due_again = (peer for peer in _due_again(contacts, now) if peer in ranked)
    again = islice(due_again, max(1, most - len(fresh)))
    return [*best, *fresh, *again]


def _due_again(contacts: Contacts, now: float) -> Iterable[str]:
    """Who has just not answered, then who has not been asked for long, longest ago first."""
    yield from contacts.missed
    for peer, contact in contacts.items():
        is_due = now - contact.asked_at > SELDOM_SECONDS if contact.is_met else contact.is_due(now)
        if is_due and peer not in contacts.missed:
            yield peer
