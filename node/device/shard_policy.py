"""Shard policy: what to do with a device's shard; a pure function of facts."""

from dataclasses import dataclass

from swarm.plan import Assignment


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a node knows of one device of its own; times are monotonic."""

    now: float
    assigned: Assignment | None
    held: Assignment | None  # loaded, or being loaded
    ready: bool  # loaded and self-tested
    since: float  # when the load of `held` last went on, or `held` was lost
    failures: int  # loads in a row that failed
    protected: bool = False  # dropped a ready shard for a plan lately, and this one serves
    alike: int = 0  # of the last failures, those for the very same cause
    awaited: bool = False  # others still load what only this shard serves


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Dismiss the sessions and forget the shard."""


@dataclass(frozen=True, slots=True)
class Lead:
    """Gather the group of this assignment, load and self-test it."""

    assignment: Assignment


ShardDuty = Keep | Drop | Lead
LOAD_SECONDS = 600.0  # without any progress
BACK_OFF_SECONDS = 2.0
ALIKE = 3  # failures for the same cause, from which on the pauses double, up to 512 s


def next_shard_duty(facts: ShardFacts) -> ShardDuty:
    """What to do with a device now; followers wait for their leader to call.

    What is ready is given up for another part only: beside a plan that has none it goes on serving.
    """
    if facts.held and facts.held != facts.assigned:
        is_kept = facts.protected or facts.awaited or facts.assigned is None
        return Keep() if facts.ready and is_kept else Drop()
    if facts.held and not facts.ready and facts.now - facts.since > LOAD_SECONDS:
        return Drop()
    if facts.held or facts.assigned is None or not facts.assigned.leads:
        return Keep()
    pause = BACK_OFF_SECONDS * min(facts.failures, 8)
    if facts.alike >= ALIKE:  # it may never load: do not read it for ever
        pause = max(pause, BACK_OFF_SECONDS * 2.0 ** min(facts.alike, 8))
    return Lead(facts.assigned) if facts.now - facts.since >= pause else Keep()
