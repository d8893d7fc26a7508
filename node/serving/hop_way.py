"""HopWay: the way to one next stage - steps that it has not confirmed, and whether it is cut; pure.

A step that nobody confirms is told again through its client, and so is what follows: in order, and
harmless if it arrives twice. A session returns to the direct way only behind a step that samples:
what was sent before that has been computed everywhere, so that nothing can be overtaken.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from swarm.wire.messages import Step

HELD_BYTES = 1 << 26  # of unconfirmed steps to one peer; the oldest are given up
RELAYED_CAP = 4096  # sessions of which is remembered that they go through their client
PATIENCE_SECONDS = 1.0  # for a confirmation, at least
FIRST_PATIENCE_SECONDS = 2.0  # where a stream has to be opened first
ROUND_TRIPS = 3.0
LEAST_BYTES_PER_SECOND = 500e3  # a link so slow is none that is cut
RETRY_SECONDS, RETRY_CAP_SECONDS = 5.0, 60.0  # between tries of a way that is cut
IDLE_SECONDS = 60.0  # without a step, after which a cut way is not tried any more

Owner = tuple[str, str]  # client and session


@dataclass(slots=True)
class HopWay:
    """What is known of the way to one leader; times are the event loop's."""

    unconfirmed: deque[tuple[int, str, Step]] = field(default_factory=deque)  # number, client
    number: int = 0  # of the last step sent
    held_bytes: int = 0
    losses: int = 0
    failures: int = 0  # tries in a row
    is_cut: bool = False
    retry_at: float = -math.inf
    used_at: float = -math.inf
    relayed: "OrderedDict[Owner, bool]" = field(default_factory=OrderedDict)  # last one samples

    def takes(self, client: str, step: Step) -> bool:
        """Whether a step goes directly; the client carries it otherwise."""
        owner = client, step.session
        if not self.is_cut and self.relayed.get(owner, True):
            self.relayed.pop(owner, None)
            return True
        self.note_relayed(client, step)
        return False

    def note_relayed(self, client: str, step: Step) -> None:
        """Remember that a session's last step went through its client."""
        self.relayed[client, step.session] = step.sample
        self.relayed.move_to_end((client, step.session))
        if len(self.relayed) > RELAYED_CAP:
            self.relayed.popitem(last=False)

    def hold(self, client: str, step: Step) -> None:
        """Keep a step that is sent until it is confirmed."""
        self.number += 1
        self.unconfirmed.append((self.number, client, step))
        self.held_bytes += len(step.body)
        while self.held_bytes > HELD_BYTES and len(self.unconfirmed) > 1:
            self._forget_oldest()

    def confirm(self, number: int) -> None:
        """The peer has all steps up to this one."""
        self.is_cut, self.failures = False, 0
        while self.unconfirmed and self.unconfirmed[0][0] <= number:
            self._forget_oldest()

    def cut(self, now: float, *, is_tried: bool) -> list[tuple[str, Step]]:
        """Take back what is not confirmed; the way is tried again, later after each vain try."""
        self.failures += is_tried
        self.losses += 1
        pause = RETRY_SECONDS * 2.0 ** min(self.failures - 1, 10) if self.failures else 0.0
        self.is_cut, self.retry_at = True, now + min(pause, RETRY_CAP_SECONDS)
        taken = [(client, step) for _, client, step in self.unconfirmed]
        self.unconfirmed.clear()
        self.held_bytes = 0
        for client, step in taken:
            self.note_relayed(client, step)
        return taken

    def is_wanted(self, now: float) -> bool:
        """Whether anything is left to confirm, or a cut way is worth another try."""
        return bool(self.unconfirmed) or (self.is_cut and now - self.used_at < IDLE_SECONDS)

    def patience_seconds(self, round_trip_seconds: float | None) -> float:
        """How long a confirmation may take with what is under way."""
        transfer = self.held_bytes / LEAST_BYTES_PER_SECOND
        if round_trip_seconds is None:
            return FIRST_PATIENCE_SECONDS + transfer
        return max(PATIENCE_SECONDS, ROUND_TRIPS * round_trip_seconds) + transfer

    def _forget_oldest(self) -> None:
        _, _, step = self.unconfirmed.popleft()
        self.held_bytes -= len(step.body)
