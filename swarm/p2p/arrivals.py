"""Arrivals: when the bytes of a transfer came in, and the rate that the link had meanwhile; no I/O.

While a stream grows (TCP's slow start, the windows of libp2p's streams) it sends in bursts with
rests between, so its mean says little of the link. Within a burst bytes come as fast as the link
lets them. So the rate is that at which the middle byte came: the median, by bytes, of the rate over
a short window from each byte on. Rests hold no bytes, and a pause of a busy machine holds few.
Where losses hold the stream back for good its bursts are shorter than a window, which sees that.
"""

from bisect import bisect_left

WINDOW_BYTES = 128 * 1024  # a window has at least so many bytes, and
WINDOW_SECONDS = 0.005  # so long: a pause of the machine must not matter
FIRST_SHARE = 0.25  # of the bytes, which do not count: the connection warms up


class Arrivals:
    """The arrivals of one transfer, in order."""

    def __init__(self) -> None:
        self._moments: list[float] = []  # seconds
        self._counts: list[int] = []  # bytes until then

    @property
    def bytes(self) -> int:
        """How many bytes have come."""
        return self._counts[-1] if self._counts else 0

    @property
    def seconds(self) -> float:
        """From the first to the last arrival."""
        return self._moments[-1] - self._moments[0] if self._moments else 0.0

    def add(self, count: int, moment: float) -> None:
        """So many bytes have come by then."""
        self._moments.append(moment)
        self._counts.append(self.bytes + count)

    def rate(self, since: float = FIRST_SHARE, until: float = 1.0) -> float | None:
        """Bytes per second between two shares of the bytes; None if too few came."""
        begin = bisect_left(self._counts, since * self.bytes)
        end = bisect_left(self._counts, until * self.bytes) + 1
        moments, counts = self._moments[begin:end], self._counts[begin:end]
        return _middle(_slopes(moments, counts)) if len(counts) > 1 else None

    def is_settled(self, tolerance: float) -> bool:
        """Whether the later half came as fast as what was before it."""
        early, late = self.rate(FIRST_SHARE, 0.5), self.rate(0.5)
        if early is None or late is None:
            return False
        return abs(late / early - 1) <= tolerance


def _slopes(moments: list[float], counts: list[int]) -> list[tuple[float, int]]:
    """The rate over a window from each arrival on, and how many bytes it speaks for."""
    slopes: list[tuple[float, int]] = []
    window = min(WINDOW_BYTES, (counts[-1] - counts[0]) // 2)
    end = 0
    for begin, (moment, count) in enumerate(zip(moments, counts, strict=True)):
        while end < len(counts) and (
            counts[end] - count < window or moments[end] - moment < WINDOW_SECONDS
        ):
            end += 1
        if end == len(counts):
            break
        speed = (counts[end] - count) / (moments[end] - moment)
        slopes.append((speed, counts[begin + 1] - count))
    if not slopes and moments[-1] > moments[0]:  # it came faster than a window is long
        return [((counts[-1] - counts[0]) / (moments[-1] - moments[0]), 1)]
    return slopes


def _middle(slopes: list[tuple[float, int]]) -> float | None:
    """The median, by bytes."""
    left = sum(weight for _, weight in slopes) / 2
    for speed, weight in sorted(slopes):
        left -= weight
        if left <= 0:
            return speed
    return None
