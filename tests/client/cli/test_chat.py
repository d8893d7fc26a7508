"""Conversations: what is remembered, what is dropped, how they end."""

import io
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from client.async_client import Client
from client.cli.chat import Chat, Conversation, run_chat
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Links
from client.request import LocalModel, Options
from client.text.tokenizer import ByteTokenizer, Messages
from client.text.tool_prompt import Tools
from swarm.errors import BadSampling, NoRoute, PromptTooLong
from swarm.invites import Invite
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, SPEC, ScriptedSwarm, continuation

INVITE = Invite((), "scripted", "scripted")


class ChatBytes(ByteTokenizer):
    """Bytes with a chat template as plain as can be."""

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        return list("".join(f"{m['role'][0]}:{m['content']}\n" for m in messages).encode())


def answer_to(conversation: str, count: int) -> str:
    return bytes(continuation(conversation.encode(), count)).decode()


def client_of(swarm: ScriptedSwarm, context: int = 4096) -> Client:
    local = LocalModel(replace(SPEC, context=context), ChatBytes(), ())
    return Client(INVITE, model=local, connect=swarm.connect)


def test_answers_become_part_of_the_conversation(in_swarm: Callable[[Story], None]) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("only", 0, LAYERS)
        shown: list[str] = []
        async with client_of(swarm) as client:
            chat = Chat(client, 5.0, {"max_tokens": 4})
            await chat.say("hi", shown.append)
            first = answer_to("u:hi\n", 4)
            assert "".join(shown) == first
            await chat.say("more", shown.append)
        assert "".join(shown)[4:] == answer_to(f"u:hi\na:{first}\nu:more\n", 4)
        assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * 2

    in_swarm(story)


def test_the_oldest_turns_go_when_the_context_is_full(in_swarm: Callable[[Story], None]) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("only", 0, LAYERS)
        async with client_of(swarm, context=40) as client:
            chat = Chat(client, 5.0, {"max_tokens": 4})
            for line in ("first line", "second line", "third line"):
                await chat.say(line, lambda piece: None)
            assert [t["content"] for t in chat.turns if t["role"] == "user"][-1] == "third line"
            assert all(turn["content"] != "first line" for turn in chat.turns)
            with pytest.raises(PromptTooLong):
                await chat.say("x" * 50, lambda piece: None)

    in_swarm(story)


def test_an_unanswered_line_is_not_remembered(in_swarm: Callable[[Story], None]) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        async with client_of(swarm) as client:
            chat = Chat(client, 0.1, {})
            with pytest.raises(NoRoute):
                await chat.say("hi", lambda piece: None)
            assert chat.turns == []

    in_swarm(story)


def test_an_unlimited_answer_has_what_the_context_leaves(in_swarm: Callable[[Story], None]) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("only", 0, LAYERS)
        async with client_of(swarm, context=100) as client:
            generation = await Chat(client, 5.0, {}).say("hi", lambda piece: None)
        assert len(generation.token_ids) == 100 - len("u:hi\n")
        assert generation.finish_reason == "length"

    in_swarm(story)


@asynccontextmanager
async def connect(invite: Invite) -> AsyncIterator[Links]:
    swarm = ScriptedSwarm()
    await swarm.stage("only", 0, LAYERS)
    async with swarm.connect(invite) as links:
        yield links


class Talk:
    """A chat whose lines are typed by a script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        self.code = 0

    def __call__(
        self, *lines: str | type[BaseException], system: str = "", **options: int | float
    ) -> tuple[list[str], list[str]]:
        """What is shown for these lines, and what is said beside it."""
        typed = iter((*lines, EOFError))

        def read(_prompt: str = "") -> str:
            line = next(typed)
            if isinstance(line, str):
                return line
            raise line

        self._patch.setattr("builtins.input", read)
        client = Client(INVITE, model=LocalModel(SPEC, ChatBytes(), ()), connect=connect)
        chosen = cast("Options", {"max_tokens": 3} | options)
        self.code = run_chat(client, Terminal(), Chat(client, 5.0, chosen, system))
        out, err = self._capsys.readouterr()
        return out.splitlines(), err.splitlines()


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return Talk(monkeypatch, capsys)


def test_lines_are_answered_until_the_input_ends(talk: Talk) -> None:
    assert talk("hi", "", "  ")[0] == [answer_to("u:hi\n", 3)]
    assert talk() == ([], [])
    assert talk("/exit", "hi") == ([], [])


def test_an_answer_that_is_cut_says_so(talk: Talk) -> None:
    assert talk("hi")[1] == ["(cut at 3 tokens; --max-tokens N allows others)"]


def test_commands_change_the_conversation(talk: Talk) -> None:
    first = answer_to("u:hi\n", 3)
    shown, _ = talk("hi", "/clear", "hi", "/system be brief", "/clear", "hi", "//slash")
    brief = answer_to("s:be brief\nu:hi\n", 3)
    slash = answer_to(f"s:be brief\nu:hi\na:{brief}\nu:/slash\n", 3)
    assert shown == [first, first, brief, slash]
    assert talk("hi", system="be brief")[0] == [brief]
    assert [line.split()[0] for line in talk("/help")[0]] == ["/help", "/system", "/clear", "/exit"]


@pytest.mark.parametrize(
    ("line", "says"), [("/hlep", "Did you mean /help?"), ("caf\udce9", "not valid UTF-8")]
)
def test_an_error_does_not_end_the_conversation(talk: Talk, line: str, says: str) -> None:
    shown, said = talk(line, "hi")
    assert shown == [answer_to("u:hi\n", 3)]
    assert says in said[0]
    assert talk.code == 2, "scripts hear of it"


def test_an_interrupted_answer_does_not_end_the_conversation(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = EventLoopThread.run, []

    def interrupted(loop_thread: EventLoopThread, coroutine: Coroutine[Any, Any, Any]) -> Any:
        asked.append(getattr(coroutine, "__qualname__", ""))
        if asked.count("Chat.say") == 1 and asked[-1] == "Chat.say":
            coroutine.close()
            raise KeyboardInterrupt
        return run(loop_thread, coroutine)

    monkeypatch.setattr(EventLoopThread, "run", interrupted)
    shown, _ = talk("hi", "hi")
    assert shown == ["", "(stopped)", answer_to("u:hi\n", 3)]


def test_one_interrupt_at_the_prompt_is_forgiven_and_the_second_leaves(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "is_watched", property(lambda _: True))
    shown, _ = talk(KeyboardInterrupt, "hi", KeyboardInterrupt)
    assert shown[-1] == "(once more leaves, as /exit and Ctrl-D do)"
    assert answer_to("u:hi\n", 3) in shown
    with pytest.raises(KeyboardInterrupt):
        talk(KeyboardInterrupt, KeyboardInterrupt)


@pytest.mark.parametrize(
    "options", [{"temperature": 200}, {"max_tokens": 1 << 30}, {"nonsense": 1}]
)
def test_options_are_refused_before_the_first_line(talk: Talk, options: dict[str, Any]) -> None:
    with pytest.raises(BadSampling):
        talk(AssertionError, **options)
