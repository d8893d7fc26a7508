"""Failure detector: what our own questions to peers brought, and whom to ask next.

In a crowd everybody asks less often, so that what a peer asks, and what it is asked, stays bounded.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

MISSES = 2  # unanswered questions in a row that make a peer lost
AGAIN_SECONDS = 5.0  # between questions to a lost peer whose record is still there, at first
AGAIN_CAP_SECONDS = 600.0  # and after many that it did not answer
LATELY_SECONDS = 30.0  # an answer of that age still shows that a peer is there
POLL_SECONDS = 4.0  # between questions to peers that might plan one day
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

    def is_due(self, now: float) -> bool:
        """Whether a peer that does not answer is asked again: ever later, once it is lost."""
        pause = AGAIN_SECONDS * 2.0 ** min(self.misses - MISSES, 10) if self.is_lost else 0.0
        return now - self.asked_at > min(pause, AGAIN_CAP_SECONDS)


UNKNOWN = Contact()  # of a peer that was never asked; nobody changes it
Contacts = Mapping[str, Contact]


def crowding(peers: int) -> float:
    """How many times less often everybody asks and looks in a swarm of so many peers."""
    return max(1.0, peers / CROWD)


def asked_by_planner(there: Sequence[str], contacts: Contacts, now: float) -> list[str]:
    """Everybody who answers, in a crowd a share of them; and who has not answered, in turn."""
    pause = len(there) / PLANNER_RATE if len(there) > CROWD else 0.0

    def is_pressing(contact: Contact) -> bool:
        return contact.misses > 0 or now - contact.asked_at >= pause

    known = {peer: contacts.get(peer, UNKNOWN) for peer in there}
    met = [peer for peer, contact in known.items() if contact.is_met and is_pressing(contact)]
    unmet = [p for p, contact in known.items() if not contact.is_met and contact.is_due(now)]
    return [*met, *_longest_unasked(unmet, contacts, ASKED_BY_PLANNER)]


def asked_by_standby(
    ranked: Sequence[str], contacts: Contacts, now: float, may_plan: Callable[[str], bool]
) -> list[str]:
    """The best of those who answer and may plan; of all others some in turn.

    `ranked` are all peers, the best in rank first. Whoever was never asked comes before others, in
    that order: so that all in a crowd soon agree who is next.
    """
    stretch = crowding(len(ranked))
    poll = min(POLL_SECONDS * stretch, POLL_CAP_SECONDS)
    most = max(1, round(ASKED_AT_ONCE / stretch**2))
    able = (p for p in ranked if p in contacts and contacts[p].is_met and may_plan(p))
    best = [p for p in islice(able, BEST_ASKED) if now - contacts[p].asked_at > poll]
    fresh = list(islice((peer for peer in ranked if peer not in contacts), most))
    there = frozenset(ranked)
    due_again = [peer for peer in _due_again(contacts, now) if peer in there]
    again = _longest_unasked(due_again, contacts, max(1, most - len(fresh)))
    return [*best, *fresh, *again]


def _due_again(contacts: Contacts, now: float) -> Iterable[str]:
    """Who has not been asked for long."""
    for peer, contact in contacts.items():
        is_due = contact.is_due(now)
        if now - contact.asked_at > SELDOM_SECONDS if contact.is_met else is_due:
            yield peer


def _longest_unasked(peers: Iterable[str], contacts: Contacts, most: int) -> list[str]:
    return sorted(peers, key=lambda peer: contacts.get(peer, UNKNOWN).asked_at)[:most]
