"""ServiceCounters: what a node has served since it last said so; StatusLines tell it."""

from dataclasses import dataclass

QUIET_SECONDS = 3600.0  # without a request, before that is said


@dataclass(slots=True)
class ServiceCounters:
    """Sessions opened and tokens computed since the last look."""

    sessions: int = 0
    tokens: int = 0
    _quiet_since: float | None = None

    def take(self, now: float) -> str:
        """What to tell of the time since the last call, then begin anew; "" for nothing new."""
        sessions, tokens = self.sessions, self.tokens
        self.sessions = self.tokens = 0
        if self._quiet_since is None or sessions or tokens:
            self._quiet_since = now
        if sessions or tokens:
            return f"{_count(sessions, 'request')}, {_count(tokens, 'token')} in the last minute"
        if now - self._quiet_since < QUIET_SECONDS:
            return ""
        self._quiet_since = now
        return "no request in the last hour"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
