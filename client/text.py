"""Text as it comes: ids to pieces that never split a character and never show a stop string."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character yet
Decode = Callable[[Sequence[int]], str]


class TextFlow:
    """Turns the new ids of one generation into pieces of text; their sum is `text`."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(word for word in stop if word)
        self._ids: list[int] = []
        self._anchor = 0  # decoding starts here: early enough for decoders that look back
        self._read = 0  # ids before this one are in `_raw`
        self._raw = ""  # decoded, not yet given out
        self.text = ""  # given out
        self.stopped = False  # a stop string has come; nothing follows it

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids and return the text that is safe to show now."""
        if self.stopped:
            return ""
        self._ids += ids
        known = self._decode(self._ids[self._anchor : self._read])
        grown = self._decode(self._ids[self._anchor :])
        if len(grown) > len(known) and not grown.endswith(UNFINISHED):
            self._raw += grown[len(known) :]
            self._anchor, self._read = self._read, len(self._ids)
        return self._give(self._safe_length())

    def finish(self) -> str:
        """Return what was held back; call it once, after the last id."""
        known = self._decode(self._ids[self._anchor : self._read])
        self._raw += self._decode(self._ids[self._anchor :])[len(known) :]
        self._read = len(self._ids)
        end = self._safe_length()
        return self._give(end if self.stopped else len(self._raw))

    def _safe_length(self) -> int:
        found = [at for word in self._stop if (at := self._raw.find(word)) >= 0]
        if found:
            self.stopped = True
            return min(found)
        held = max((_overlap(self._raw, word) for word in self._stop), default=0)
        return len(self._raw) - held

    def _give(self, length: int) -> str:
        piece, self._raw = self._raw[:length], "" if self.stopped else self._raw[length:]
        self.text += piece
        return piece


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` begin `word`."""
    longest = min(len(text), len(word) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(word[:size])), 0)
