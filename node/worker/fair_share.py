"""FairShare: which clients use more of a device's time than their part, while others want it; pure.

After "Fairness in Serving Large Language Models" (OSDI 2024): what each client was served is
counted, and who was served more than its part waits. Only time counts that others would have used:
a client alone is served at once, and what it used is forgotten within seconds.

A client far over its part also leaves time unused that others are about to want: a step of its
own rows alone would keep them waiting. It has its part of the time, and all that others leave once
they are gone for a moment. Of two clients none is ever so far over.
"""

from collections.abc import Mapping

HALF_SECONDS = 5.0  # until only half of what a client used still counts
FREE_SECONDS = 0.5  # of use: a prompt now and then is nobody's loss
MARGIN = 1.2  # times the mean of all clients
FAR = 2.0  # times the mean
IDLE_SECONDS = 5.0  # a client that ran nothing for so long no longer counts
MOMENT_SECONDS, MOMENT_STEPS = 0.25, 4  # the longer one: who ran nothing for so long is gone
TURN_STEPS = 4  # of a turn's part at this device: one more step is then not much
FRESHNESS = 0.05  # weight of the newest turn


class FairShare:
    """The time of one device that each client has used of late."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share  # of the model's layers that the device has
        self._used: dict[str, float] = {}  # seconds
        self._last: dict[str, float] = {}  # when it last ran something
        self._as_of = 0.0
        self._over: frozenset[str] = frozenset()
        self._far: frozenset[str] = frozenset()
        self._turn_seconds = 0.0  # from one step of a client to its next, far ones left out

    def ran(self, rows: Mapping[str, int], seconds: float, now: float) -> None:
        """A step with so many rows of each client took so long."""
        keep = 0.5 ** (max(0.0, now - self._as_of) / HALF_SECONDS)
        self._as_of = now
        used = {client: each * keep for client, each in self._used.items()}
        for client, count in rows.items():
            used[client] = used.get(client, 0.0) + seconds * count / sum(rows.values())
            self._note_turn(client, seconds, now)
            self._last[client] = now
        self._last = {client: at for client, at in self._last.items() if now - at < IDLE_SECONDS}
        self._used = {client: used[client] for client in self._last}
        self._over = self._more_than(MARGIN)
        self._far = self._more_than(FAR)

    def is_over(self, client: str) -> bool:
        """Whether a client has had more than its part, while others were there."""
        return client in self._over

    def is_far_over(self, client: str) -> bool:
        """Whether a client has had so much that it waits for others that are about to come."""
        return client in self._far

    def pause_seconds(self, seconds: float, now: float) -> float:
        """How long clients far over leave the device to the others, after a step of theirs alone.

        With such pauses each has as much of the time as any other client could have. None are
        needed where the others are at other stages or under way for most of the time.
        """
        moment = _moment(seconds)
        active = {client for client, at in self._last.items() if now - at < moment}
        far = len(active & self._far)
        if not far or self._turn_seconds * self._share > TURN_STEPS * seconds:
            return 0.0
        return min(seconds * (len(active) - far) / far, moment)

    def _note_turn(self, client: str, seconds: float, now: float) -> None:
        turn = now - self._last.get(client, 0.0)
        if client not in self._far and turn < _moment(seconds):
            known = self._turn_seconds or turn
            self._turn_seconds = known + FRESHNESS * (turn - known)

    def _more_than(self, times: float) -> frozenset[str]:
        """The clients that used so many times the mean, and more."""
        if len(self._used) < 2:
            return frozenset()
        part = times * sum(self._used.values()) / len(self._used) + FREE_SECONDS
        return frozenset(client for client, each in self._used.items() if each > part)


def _moment(step_seconds: float) -> float:
    return max(MOMENT_SECONDS, MOMENT_STEPS * step_seconds)
