"""Detokenizer: ids to pieces of text that never split a character and never show a stop string."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character yet
CONTEXTS = (*range(8, 16), 64, 256)  # how many of a prompt's last ids to look at, in this order
Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns the new ids of one generation into pieces of text; their sum is `text`.

    The text goes on where the text of `prompt` ends: both together read as one.
    """

    def __init__(
        self, decode: Decode, stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = tuple(word for word in stop if word)
        self._ids = _end_of(prompt, decode)
        self._anchor = 0  # decoding starts here: early enough for decoders that look back
        self._read = len(self._ids)  # ids before this one are in `_raw`, or in the prompt
        self._raw = ""  # decoded, not yet given out
        self.text = ""  # given out
        self.stopped = False  # a stop string has come; nothing follows it

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids and return the text that is safe to show now."""
        if self.stopped:
            return ""
        self._ids += ids
        fresh = self._fresh()
        if fresh and not fresh.endswith(UNFINISHED):
            self._raw += fresh
            self._anchor, self._read = self._read, len(self._ids)
        return self._give(self._safe_length())

    def finish(self) -> str:
        """Return what was held back; call it once, after the last id."""
        self._raw += self._fresh()
        self._read = len(self._ids)
        end = self._safe_length()
        return self._give(end if self.stopped else len(self._raw))

    def _fresh(self) -> str:
        """What the ids that are not yet read add; a character begun in the prompt is ours."""
        known = self._decode(self._ids[self._anchor : self._read])
        grown = self._decode(self._ids[self._anchor :])
        if grown.startswith(known):
            return grown[len(known) :]
        if known.endswith(UNFINISHED):
            return grown[_shared(known, grown) :]
        return self._decode(self._ids[self._read :])  # broken bytes would take back what is given

    def _safe_length(self) -> int:
        found = [at for word in self._stop if (at := self._raw.find(word)) >= 0]
        if found:
            self.stopped = True
            return min(found)
        held = max((overlap(self._raw, word) for word in self._stop), default=0)
        return len(self._raw) - held

    def _give(self, length: int) -> str:
        piece, self._raw = self._raw[:length], "" if self.stopped else self._raw[length:]
        self.text += piece
        return piece


def _end_of(prompt: Sequence[int], decode: Decode) -> list[int]:
    """Enough of the prompt's end for a decoder to know that a text goes on: a whole word."""
    for size in CONTEXTS:
        tail = list(prompt[-size:])
        text = decode(tail)
        if text.strip() and not text.startswith(UNFINISHED):
            return tail
    return list(prompt)


def _shared(one: str, other: str) -> int:
    """How many characters two texts share from the start on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` begin `word`."""
    longest = min(len(text), len(word) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(word[:size])), 0)
