"""Quota: how many requests a key may make a minute, as a bucket that fills as time goes on."""

from collections.abc import Callable
from time import monotonic

from client.gateway.http.api_error import ApiError, busy

MINUTE_SECONDS = 60.0


class Quota:
    """A bucket for each key, full at first; None is no limit."""

    def __init__(
        self, requests_per_minute: int | None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most, self._clock = requests_per_minute, clock
        self._left: dict[bytes, tuple[float, float]] = {}  # requests, and when that was

    def take(self, key: bytes) -> ApiError | None:
        """Take one request out of a key's bucket; the error to answer with if it is empty."""
        if self._most is None:
            return None
        now, each = self._clock(), MINUTE_SECONDS / self._most
        left, since = self._left.get(key, (float(self._most), now))
        left = min(left + (now - since) / each, float(self._most))
        if left < 1:
            self._left[key] = left, now
            return busy(f"This key may ask {self._most} times a minute.", (1 - left) * each)
        self._left[key] = left - 1, now
        return None
