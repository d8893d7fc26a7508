"""RowForms: whether hidden rows go to a peer in full or as int8; no I/O.

Int8 is a quarter of float32's bytes, or half of bfloat16's, and costs exactness, so only slow links
use it: those that take longer for the largest chunk of a prompt than people notice, and longer than
our own step, behind which sending would hide. A chunk takes a device at least as long as a step.
"""

from collections.abc import Callable

from node.config import AUTO, FORMS, INT8
from swarm.hardware import WIDEST, WIDTHS
from swarm.wire.messages import CHUNK_CAP

CHUNK_SECONDS = 0.25  # 1 Gbit/s is within it for rows of up to 16,384 float32
LINKS_REMEMBERED = 1024  # the oldest is forgotten
RETURN_SHARE = 0.5  # of the limit: a link about as slow as the limit must not flap
IsNarrow = Callable[[str, float, str], bool]  # the link to a peer, by our step and rows' dtype


def always_full(_peer: str, _step_seconds: float, _dtype: str = WIDEST) -> bool:
    """Rows are never narrowed."""
    return False


class RowForms:
    """Decides link by link; remembers the last decision."""

    def __init__(
        self,
        wish: str,
        hidden: int,
        bytes_per_second_to: Callable[[str], float],
        say: Callable[[str, float], None] = lambda _peer, _bytes_per_second: None,
    ) -> None:
        assert wish in FORMS
        self._wish = wish
        self._chunk_values = CHUNK_CAP * hidden
        self._bytes_per_second_to = bytes_per_second_to
        self._say = say
        self._narrow: dict[tuple[str, float, str], None] = {}  # links, by what goes over them

    def is_narrow(self, peer: str, step_seconds: float, dtype: str = WIDEST) -> bool:
        """Whether a new session's rows go to `peer` as int8; our decode step takes so long."""
        if self._wish != AUTO:
            return self._wish == INT8
        bytes_per_second = self._bytes_per_second_to(peer)
        limit = max(CHUNK_SECONDS, step_seconds)
        link = peer, limit, dtype
        was_narrow = link in self._narrow
        share = RETURN_SHARE if was_narrow else 1.0
        narrow = self._chunk_values * WIDTHS[dtype] / bytes_per_second > limit * share
        if narrow != was_narrow:
            self._note(link, is_narrow=narrow)
            self._say(peer, bytes_per_second if narrow else 0.0)
        return narrow

    def _note(self, link: tuple[str, float, str], *, is_narrow: bool) -> None:
        self._narrow.pop(link, None)
        if is_narrow:
            self._narrow[link] = None
        if len(self._narrow) > LINKS_REMEMBERED:
            del self._narrow[next(iter(self._narrow))]
