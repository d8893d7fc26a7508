"""What the owner's programs ask the swarm through his node: how many at once, and by whom."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from node.owner.control_server import Words
from node.owner.owner_questions import MOST, HostedClient, MakeClient, OwnerQuestions
from node.served_model import ServedModel
from swarm.errors import Unreachable
from swarm.model_spec import ModelSpec
from tests.client.scripted import SPEC


class Slow:
    """A client whose answers end when it is told so."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = 0

    def make(self) -> MakeClient:
        self.made += 1
        return lambda *_parts: self

    async def generate(
        self, words: Words, enough: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        try:
            yield {"ids": [words["number"]]}
            await enough.wait()
        finally:
            self.closed += 1


def host(make: MakeClient) -> HostedClient:
    parts: Any = (None, None, None, None, None)
    return make(*parts)


def run(story: Callable[[Slow, OwnerQuestions], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10.0):
            slow = Slow()
            served = ServedModel("./mine", folder, SPEC)
            await story(slow, OwnerQuestions("forest", served, slow.make, host))

    asyncio.run(whole())


def test_who_asks_is_told_what_the_model_is_and_where_its_tokenizer_lies(tmp_path: Path) -> None:
    async def story(slow: Slow, questions: OwnerQuestions) -> None:
        facts = await questions.model({})
        assert (facts["swarm"], facts["folder"]) == ("forest", str(tmp_path))
        assert ModelSpec(**facts["spec"]) == SPEC
        assert slow.made == 0, "the client is loaded for the first question"

    run(story, tmp_path)


def test_only_so_many_are_answered_at_once_by_one_client(tmp_path: Path) -> None:
    async def story(slow: Slow, questions: OwnerQuestions) -> None:
        async with AsyncExitStack() as open_ones:
            for number in range(MOST):
                answers = questions.generate({"number": number}, asyncio.Event())
                await open_ones.enter_async_context(aclosing(answers))
                assert await anext(answers) == {"ids": [number]}
            with pytest.raises(Unreachable, match=f"{MOST} questions already"):
                await anext(questions.generate({}, asyncio.Event()))
        assert (slow.made, slow.closed) == (1, MOST)
        async with aclosing(questions.generate({"number": 9}, asyncio.Event())) as answers:
            assert await anext(answers) == {"ids": [9]}

    run(story, tmp_path)
