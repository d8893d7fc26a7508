"""UnprovedStreams: streams whose other side has yet to show its proof: few, and fewer of one peer.

They have places of their own, so that no crowd of silent strangers takes those of proved peers.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swarm.errors import RemoteProtocolError


class UnprovedStreams:
    """So many places in all and for one peer; a newcomer ends the oldest of the largest crowd."""

    def __init__(self, cap: int, per_peer: int) -> None:
        self._cap = cap
        self._per_peer = per_peer
        self._waiting: dict[object, tuple[str, Callable[[], None]]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, peer: str, end: Callable[[], None]) -> Iterator[None]:
        """Hold a place until the proof is there; `end` ends the stream if somebody needs it.

        Raises RemoteProtocolError if the peer has all that one may have.
        """
        sizes = Counter(other for other, _ in self._waiting.values())
        if sizes[peer] >= self._per_peer:
            raise RemoteProtocolError("It opens streams without showing its proof.")
        if len(self._waiting) >= self._cap:
            self._end_one(max(sizes.values()), sizes)
        place = object()
        self._waiting[place] = peer, end
        try:
            yield
        finally:
            self._waiting.pop(place, None)

    def _end_one(self, most: int, sizes: Counter[str]) -> None:
        place = next(place for place, (peer, _) in self._waiting.items() if sizes[peer] == most)
        _, end = self._waiting.pop(place)
        end()
