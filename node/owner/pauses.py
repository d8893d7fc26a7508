"""Pauses: who wants the devices of this node back now - its owner's word, or a rule of his."""

import asyncio
import math

OWNER = "swarm pause"  # as whose wish an order, or a signal, is shown


class Pauses:
    """An owner's own pause lasts until he ends it; his `resume` overrules the rules of now, too.

    A rule that was overruled counts again once it has not wanted a pause meanwhile. `news` is set
    at every change; times are monotonic.
    """

    def __init__(self) -> None:
        self._until = -math.inf  # of the owner's own pause
        self._wanting: dict[str, bool] = {}  # by rule
        self._overruled: set[str] = set()
        self.news = asyncio.Event()

    def pause(self, now: float, seconds: float = math.inf) -> None:
        """The owner wants the devices, for so long; a later word of his replaces it."""
        self._until = now + seconds
        self.news.set()

    def resume(self) -> None:
        """The owner does not need the devices, whatever the rules say now."""
        self._until = -math.inf
        self._overruled = {rule for rule, wants in self._wanting.items() if wants}
        self.news.set()

    def note(self, rule: str, *, wants: bool) -> None:
        """A rule, known by what people read of it, wants a pause or does not."""
        if self._wanting.get(rule, False) == wants:
            return
        self._wanting[rule] = wants
        self._overruled.discard(rule)
        self.news.set()

    def why(self, now: float) -> str:
        """Whose wish the pause of now is; empty if there is none."""
        if now < self._until:
            return OWNER
        wanting = (rule for rule, wants in self._wanting.items() if wants)
        return next((rule for rule in wanting if rule not in self._overruled), "")

    def seconds_left(self, now: float) -> float:
        """Until the owner's own pause ends by itself; infinite if it does not, or is over."""
        return self._until - now if now < self._until else math.inf
