"""Conversations: what is remembered, what is dropped, how they end."""

import io
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from client.chat import Chat, run_chat
from client.connection import Client, Links
from client.request import LocalModel
from client.screen import Screen
from client.tokenizer import ByteTokenizer, Messages
from swarm.errors import NoRoute, PromptTooLong
from swarm.invites import Invite
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, SPEC, ScriptedSwarm, continuation

INVITE = Invite((), "scripted", "scripted")


class ChatBytes(ByteTokenizer):
    """Bytes with a chat template as plain as can be."""

    def ids_of_messages(self, messages: Messages) -> list[int]:
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


def test_lines_are_answered_until_the_input_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def connect(invite: Invite) -> AsyncIterator[Links]:
        swarm = ScriptedSwarm()
        await swarm.stage("only", 0, LAYERS)
        async with swarm.connect(invite) as links:
            yield links

    def spoken(lines: Sequence[str]) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        local = LocalModel(SPEC, ChatBytes(), ())
        run_chat(Client(INVITE, model=local, connect=connect), Screen(), 5.0, {"max_tokens": 3})
        return capsys.readouterr().out.splitlines()

    assert spoken(["hi", "", "  "]) == [answer_to("u:hi\n", 3)]
    assert spoken([]) == []
