"""ActivationFormat: whether hidden rows go to a peer in full or as int8; no I/O.

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
UseInt8 = Callable[[str, float, str], bool]  # the link to a peer, by our step and rows' dtype


def always_full(_peer: str, _step_seconds: float, _dtype: str = WIDEST) -> bool:
    """Rows are never narrowed."""
    return False


class ActivationFormat:
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
        self._int8_links: dict[tuple[str, float, str], None] = {}  # links, by what goes over them

    def use_int8(self, peer: str, step_seconds: float, dtype: str = WIDEST) -> bool:
        """Whether a new session's rows go to `peer` as int8; our decode step takes so long."""
        if self._wish != AUTO:
            return self._wish == INT8
        bytes_per_second = self._bytes_per_second_to(peer)
        limit = max(CHUNK_SECONDS, step_seconds)
        link = peer, limit, dtype
        was_int8 = link in self._int8_links
        share = RETURN_SHARE if was_int8 else 1.0
        is_int8 = self._chunk_values * WIDTHS[dtype] / bytes_per_second > limit * share
        if is_int8 != was_int8:
            self._note(link, is_int8=is_int8)
            self._say(peer, bytes_per_second if is_int8 else 0.0)
        return is_int8

    def _note(self, link: tuple[str, float, str], *, is_int8: bool) -> None:
        self._int8_links.pop(link, None)
        if is_int8:
            self._int8_links[link] = None
        if len(self._int8_links) > LINKS_REMEMBERED:
            del self._int8_links[next(iter(self._int8_links))]
