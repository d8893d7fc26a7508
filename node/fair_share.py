"""FairShare: which clients use more of a device's time than their part, while others want it; pure.

After "Fairness in Serving Large Language Models" (OSDI 2024): what each client was served is
counted, and who was served more than its part waits. Only time counts that others would have used:
a client alone is served at once, and what it used is forgotten within seconds.
"""

from collections.abc import Mapping

HALF_SECONDS = 5.0  # until only half of what a client used still counts
FREE_SECONDS = 0.5  # of use: a prompt now and then is nobody's loss
MARGIN = 1.2  # times the mean of all clients
IDLE_SECONDS = 5.0  # a client that ran nothing for so long no longer counts


class FairShare:
    """The time of one device that each client has used of late."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}  # seconds
        self._last: dict[str, float] = {}  # when it last ran something
        self._as_of = 0.0
        self._over: frozenset[str] = frozenset()

    def ran(self, rows: Mapping[str, int], seconds: float, now: float) -> None:
        """A step with so many rows of each client took so long."""
        keep = 0.5 ** (max(0.0, now - self._as_of) / HALF_SECONDS)
        self._as_of = now
        used = {client: each * keep for client, each in self._used.items()}
        for client, count in rows.items():
            used[client] = used.get(client, 0.0) + seconds * count / sum(rows.values())
            self._last[client] = now
        self._last = {client: at for client, at in self._last.items() if now - at < IDLE_SECONDS}
        self._used = {client: used[client] for client in self._last}
        self._over = self._find_over()

    def is_over(self, client: str) -> bool:
        """Whether a client has had more than its part, while others were there."""
        return client in self._over

    def _find_over(self) -> frozenset[str]:
        if len(self._used) < 2:
            return frozenset()
        part = MARGIN * sum(self._used.values()) / len(self._used) + FREE_SECONDS
        return frozenset(client for client, each in self._used.items() if each > part)
