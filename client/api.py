"""Plain calls for scripts: generate and stream, no event loop in sight."""

from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue
from typing import Unpack

from client.async_client import Client
from client.event_loop_thread import EventLoopThread
from client.generation import Generation
from client.request import Options, Question
from client.session.deadlines import TIMEOUT_SECONDS
from client.text.tokenizer import Messages
from swarm.errors import LocalProtocolError
from swarm.invites import Invite


def generate(
    prompt: str | Sequence[int] | None = None,
    *,
    messages: Messages | None = None,
    join: Invite | str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    raw_bytes: bool = False,
    **options: Unpack[Options],
) -> Generation:
    """Ask a swarm once and return the whole answer, which prints as its text; raises SwarmError.

    Without `join` it asks the swarm of $SWARM_INVITE, else the one that this machine joined last.
    `raw_bytes` is for models without a tokenizer: each byte of prompt and answer is an id.
    """
    question = Question(prompt, messages, timeout_seconds, options)
    with EventLoopThread() as loop_thread:
        return loop_thread.run(answer(Client(join, raw_bytes=raw_bytes), question))


def stream(
    prompt: str | Sequence[int] | None = None,
    *,
    messages: Messages | None = None,
    join: Invite | str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    raw_bytes: bool = False,
    **options: Unpack[Options],
) -> "Stream":
    """Ask a swarm once and iterate over pieces of text as they come; raises SwarmError."""
    return Stream(
        Client(join, raw_bytes=raw_bytes), Question(prompt, messages, timeout_seconds, options)
    )


class Stream(Iterator[str]):
    """Pieces of text as they come; closing or dropping it ends the generation in the swarm."""

    def __init__(self, client: Client, question: Question) -> None:
        self._whole: list[Generation] = []
        self._pieces = _pieces(client, question, self._whole)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating, and wait until the stages are told."""
        self._pieces.close()

    @property
    def generation(self) -> Generation:
        """The whole, once the last piece has been read."""
        if not self._whole:
            raise LocalProtocolError("The generation is not complete.", "Read all pieces first.")
        return self._whole[0]


async def answer(
    client: Client, question: Question, show: Callable[[str], None] | None = None
) -> Generation:
    """Connect, answer one question and leave; refuses bad input before it connects."""
    request = await client.request(question)
    if show is None:
        async with client:
            return await client.complete(request)
    async with client, client.ask(request) as pieces:
        async for piece in pieces:
            show(piece)
        return pieces.generation


def _pieces(
    client: Client, question: Question, whole: list[Generation]
) -> Generator[str, None, None]:
    """Knows nothing of the Stream, so that a Stream that is dropped ends it."""
    pieces: SimpleQueue[str | None] = SimpleQueue()

    async def fill() -> None:
        try:
            whole.append(await answer(client, question, pieces.put))
        finally:
            pieces.put(None)

    with EventLoopThread() as loop_thread:
        future = loop_thread.start(fill())
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            future.result()
        finally:
            future.cancel()
