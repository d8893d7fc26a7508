"""Chat: a conversation on the terminal, one line at a time, over one connection."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from client.async_client import Client
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.generation import Generation
from client.request import Options, Question, Request
from swarm.commands.command_line import as_text, say_error, suggestion
from swarm.errors import BadInput, PromptTooLong, SwarmError

ASK = "you> "
STOPPED = "\n(stopped)"
MOST_TOKENS = 1024  # of an answer whose length nobody chose, where the context has room
LEAST_TOKENS = 64  # for which old turns are forgotten
HELP = {
    "/help": "this list",
    "/system TEXT": "what the model should know or be; without TEXT: nothing",
    "/clear": "forget the conversation",
    "/exit": "leave, as Ctrl-D does",
}


class Chat:
    """The turns so far, and how to add one."""

    def __init__(
        self, client: Client, timeout_seconds: float, options: Options, system: str = ""
    ) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._options = options
        self.system = system
        self.turns: list[dict[str, str]] = []

    async def say(self, line: str, show: Callable[[str], None]) -> Generation:
        """Add a line of the person and the answer to it; raises SwarmError, and adds nothing."""
        asked = {"role": "user", "content": line}
        request = await self._fitting_request(asked)
        async with self._client.ask(request) as pieces:
            async for piece in pieces:
                show(piece)
            self.turns += [asked, {"role": "assistant", "content": pieces.generation.text}]
            return pieces.generation

    async def check(self) -> None:
        """Refuse options and templates that cannot work before anything is asked."""
        await self._request([{"role": "user", "content": "Hello"}])

    async def _fitting_request(self, asked: dict[str, str]) -> Request:
        """The conversation, without its oldest turns once it outgrows the context."""
        while True:
            try:
                return await self._request([*self.turns, asked])
            except PromptTooLong:
                if not self.turns:
                    raise
                del self.turns[:2]

    async def _request(self, turns: list[dict[str, str]]) -> Request:
        system = [{"role": "system", "content": self.system}] if self.system else []
        context = (await self._client.model()).spec.context
        least: Options = {"max_tokens": min(LEAST_TOKENS, max(context // 4, 1))}
        question = Question(None, system + turns, self._timeout_seconds, least | self._options)
        request = await self._client.request(question)
        if "max_tokens" in self._options:
            return request
        room = min(context - len(request.ids), MOST_TOKENS)
        return replace(request, sampling=replace(request.sampling, max_tokens=room))


class Conversation:
    """A chat on a terminal: reads lines, obeys commands, and outlives errors."""

    def __init__(self, chat: Chat, terminal: Terminal, loop_thread: EventLoopThread) -> None:
        self._chat = chat
        self._terminal = terminal
        self._loop_thread = loop_thread
        self.exit_code = 0  # of the last line that failed, for scripts

    @property
    def is_watched(self) -> bool:
        """Whether a person types and reads, or a script does."""
        return self._terminal.is_terminal and sys.stdin.isatty()

    def run(self) -> None:
        """Talk until the input ends."""
        if self.is_watched:
            with suppress(ImportError):  # lines can be edited where Python has it
                importlib.import_module("readline")
            self._terminal.line("Write a line to the model; /help lists commands, Ctrl-D leaves.")
        for line in self._lines():
            if line == "/exit":
                return
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self._obey(line)
                else:
                    self._say(line)
            except SwarmError as error:
                say_error(error)
                self.exit_code = 0 if self.is_watched else error.exit_code

    def _say(self, line: str) -> None:
        text = as_text(line.removeprefix("/") if line.startswith("//") else line, "line")
        try:
            generation = self._loop_thread.run(self._chat.say(text, self._terminal.piece))
        except KeyboardInterrupt:
            self._terminal.line(STOPPED)
            return
        self._terminal.line()
        if generation.finish_reason == "length":
            count = len(generation.token_ids)
            self._terminal.note(f"(cut at {count} tokens; --max-tokens N allows others)")

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case "/help":
                broad = max(map(len, HELP))
                self._terminal.line("\n".join(f"{name:<{broad}}  {HELP[name]}" for name in HELP))
            case "/system":
                self._chat.system = as_text(rest.strip(), "line")
            case "/clear":
                self._chat.turns.clear()
            case _:
                meant = suggestion(word, [name.partition(" ")[0] for name in HELP])
                raise BadInput(
                    f"There is no command {word}.{meant}", "See /help; begin with // to send a /."
                )

    def _lines(self) -> Iterator[str]:
        interrupts = 0  # in a row: the second one leaves
        while True:
            try:
                line = input(ASK if self.is_watched else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1 or not self.is_watched:
                    raise
                self._terminal.line("\n(once more leaves, as /exit and Ctrl-D do)")
                continue
            interrupts = 0
            if line:
                yield line


def run_chat(client: Client, terminal: Terminal, chat: Chat) -> int:
    """Talk until the input ends; returns the exit code; raises SwarmError before the first line."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused line by line
    with EventLoopThread() as loop_thread:
        loop_thread.run(chat.check())
        with loop_thread.hold(client):
            conversation = Conversation(chat, terminal, loop_thread)
            conversation.run()
            return conversation.exit_code
