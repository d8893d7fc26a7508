"""Pages: which pages of a KV store are free, and how many sessions hold each of the others.

A page is PAGE_TOKENS rows of every layer. Sessions whose prompts begin alike hold the same pages.
"""

from collections.abc import Iterable, Sequence

PAGE_TOKENS = 64


class Pages:
    """Counts holders of `count` pages; what is kept for later gives way to what is in use."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.available = count  # pages that no session uses: free ones, and kept ones
        self._in_use = [0] * count
        self._kept = [0] * count
        self._taken = bytearray(count)  # 1: in use or kept
        self._wanted = bytearray(count)  # 1: taken, or soon wanted by the session before it

    def find(self, wanted: Sequence[int]) -> int | None:
        """A free page: the first wanted one, else one that nobody wants, else any; or None."""
        for page in wanted[:1]:
            if not self._taken[page]:
                return page
        for marks in (self._wanted, self._taken):
            if (page := marks.find(0)) >= 0:
                return page
        return None

    def want(self, count: int) -> range:
        """Mark neighbouring free pages for one session: `count`, or as many as there are."""
        while count and (start := self._wanted.find(bytes(count))) < 0:
            count //= 2
        wanted = range(start, start + count) if count else range(0)
        self._wanted[wanted.start : wanted.stop] = b"\1" * count
        return wanted

    def give_up(self, wanted: Iterable[int]) -> None:
        """Forget that a session wanted these pages."""
        for page in wanted:
            self._wanted[page] = self._taken[page]

    def users(self, page: int) -> int:
        """How many sessions use the page."""
        return self._in_use[page]

    def is_kept(self, page: int) -> bool:
        """Whether a prompt is kept in the page."""
        return self._kept[page] > 0

    def use(self, pages: Iterable[int]) -> None:
        """Count one more session that uses the pages."""
        for page in pages:
            self.available -= not self._in_use[page]
            self._in_use[page] += 1
            self._taken[page] = self._wanted[page] = 1

    def leave(self, pages: Iterable[int]) -> list[int]:
        """Count one session less; returns the pages that are free now."""
        freed = []
        for page in pages:
            self._in_use[page] -= 1
            self.available += not self._in_use[page]
            freed += self._freed(page)
        return freed

    def keep(self, pages: Iterable[int]) -> None:
        """Count one more prompt that is kept in the pages."""
        for page in pages:
            self._kept[page] += 1
            self._taken[page] = self._wanted[page] = 1

    def forget(self, pages: Iterable[int]) -> list[int]:
        """Count one kept prompt less; returns the pages that are free now."""
        freed = []
        for page in pages:
            self._kept[page] -= 1
            freed += self._freed(page)
        return freed

    def _freed(self, page: int) -> list[int]:
        if self._in_use[page] or self._kept[page]:
            return []
        self._taken[page] = self._wanted[page] = 0
        return [page]


def pages_for(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


def runs_of(pages: Iterable[int]) -> list[range]:
    """Neighbouring pages, joined."""
    runs: list[range] = []
    for page in sorted(pages):
        if runs and runs[-1].stop == page:
            runs[-1] = range(runs[-1].start, page + 1)
        else:
            runs.append(range(page, page + 1))
    return runs
