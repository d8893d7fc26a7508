"""Door: whether we speak with a peer, asked at every stream, question and answer, in and out."""

from collections.abc import Callable

Refusal = Callable[[str], str]  # why we do not speak with a peer; empty if we do


def open_to_all(_peer: str) -> str:
    """The door of who has no reason to refuse anybody."""
    return ""


class Door:
    """What a channel and a board ask before they have to do with a peer."""

    def __init__(self, own: str, refusal: Refusal = open_to_all) -> None:
        self._own = own
        self._refusal = refusal

    def problem_with(self, peer: str) -> str:
        """Why we do not speak with a peer; empty if we do."""
        return "" if peer == self._own else self._refusal(peer)

    def admits(self, peer: str) -> bool:
        """Whether we speak with a peer."""
        return not self.problem_with(peer)
