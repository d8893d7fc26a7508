"""ReasoningReader: parts what a model writes to itself, within <think> tags, from its answer."""

from dataclasses import dataclass

from client.text.detokenizer import overlap

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """Words that the model writes to itself."""

    text: str


class ReasoningReader:
    """Takes text piece by piece; gives thoughts first, then text."""

    def __init__(self, *, is_thinking: bool) -> None:
        self._is_thinking = is_thinking  # the prompt ends with the tag already
        self._is_over = False
        self._is_begun = not is_thinking  # newlines behind a tag are none of ours
        self._held = ""

    @classmethod
    def behind(cls, prompt: str) -> "ReasoningReader":
        """A reader of what follows the end of a prompt."""
        return cls(is_thinking=prompt.rstrip().endswith(BEGIN))

    def feed(self, piece: str) -> list[str | Thought]:
        """Take more of the text; returns what is certain now."""
        self._held += piece
        if not (self._is_over or self._is_thinking):
            self._look_for_begin()
        found: list[str | Thought] = []
        if self._is_thinking:
            found.append(Thought(self._thought()))
        if self._is_over:
            text, self._held = self._fresh(self._held), ""
            found.append(text)
        return [each for each in found if each and each != Thought("")]

    def finish(self) -> list[str | Thought]:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Thought(held)] if self._is_thinking else [held]

    def _look_for_begin(self) -> None:
        start = self._held.lstrip()
        if start.startswith(BEGIN):
            self._is_thinking, self._is_begun, self._held = True, False, start[len(BEGIN) :]
        elif not BEGIN.startswith(start):
            self._is_over = True

    def _thought(self) -> str:
        """What of the thoughts is certain; once they end, what is held is the answer."""
        before, end, after = self._held.partition(END)
        if end:
            self._is_thinking, self._is_over, self._held = False, True, after
            thought, self._is_begun = self._fresh(before.rstrip("\n")), False
            return thought
        certain = len(before) - overlap(before, END)
        certain = len(before[:certain].rstrip("\n"))
        self._held = before[certain:]
        return self._fresh(before[:certain])

    def _fresh(self, text: str) -> str:
        text = text if self._is_begun else text.lstrip("\n")
        self._is_begun = self._is_begun or text != ""
        return text
