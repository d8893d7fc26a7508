"""Chat: a conversation on the terminal, one line at a time, over one connection."""

from collections.abc import Callable, Iterator

from client.background import Background
from client.connection import Client
from client.request import Options, Question, Request
from client.screen import Screen
from swarm.errors import PromptTooLong

ASK = "you> "
ENDED = "\n(stopped)"


class Chat:
    """The turns so far, and how to add one."""

    def __init__(self, client: Client, timeout_seconds: float, options: Options) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._options = options
        self.turns: list[dict[str, str]] = []

    async def say(self, line: str, show: Callable[[str], None]) -> None:
        """Add a line of the person and the answer to it; raises SwarmError, and adds nothing."""
        asked = {"role": "user", "content": line}
        request = await self._fitting_request(asked)
        async with self._client.ask(request) as pieces:
            async for piece in pieces:
                show(piece)
            self.turns += [asked, {"role": "assistant", "content": pieces.generation.text}]

    async def _fitting_request(self, asked: dict[str, str]) -> Request:
        """The conversation, without its oldest turns once it outgrows the context."""
        while True:
            turns = (*self.turns, asked)
            question = Question(None, turns, self._timeout_seconds, self._options)
            try:
                return await self._client.request(question)
            except PromptTooLong:
                if not self.turns:
                    raise
                del self.turns[:2]


def run_chat(client: Client, screen: Screen, timeout_seconds: float, options: Options) -> None:
    """Talk until the input ends; an interrupt stops the answer, a second one the chat."""
    chat = Chat(client, timeout_seconds, options)
    with Background() as background, background.hold(client):
        for line in _lines(screen):
            try:
                background.run(chat.say(line, screen.piece))
                screen.line()
            except KeyboardInterrupt:
                screen.line(ENDED)


def _lines(screen: Screen) -> Iterator[str]:
    while True:
        try:
            line = input(ASK if screen.is_terminal else "").strip()
        except EOFError:
            return
        if line:
            yield line
