"""Anthropic's API: what its client and Claude Code send, and the events that they read."""

import json
from typing import Any

import pytest

from tests.client.gateway.gateways import Gateway, answer_to, chat_text, with_gateway

PATH = "/v1/messages"
TURNS = [{"role": "user", "content": "hello"}]
ASKED: dict[str, Any] = {"max_tokens": 5, "messages": TURNS, "model": "scripted"}
CALL = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "a.py"}}\n</tool_call>'
SAID = answer_to(chat_text(TURNS), 5)
READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}},
}
# as Claude Code sends it: streaming, with thinking, cache marks, tools and results of tools
CLAUDE_CODE: dict[str, Any] = {
    "model": "scripted",
    "max_tokens": 32000,
    "stream": True,
    "temperature": 1,
    "thinking": {"type": "enabled", "budget_tokens": 31999},
    "metadata": {"user_id": "user_1_account__session_2"},
    "output_config": {"effort": "high"},
    "system": [
        {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [{**READ, "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "look"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "Read", "input": {"file_path": "a"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    **{"type": "tool_result", "tool_use_id": "t1", "is_error": False},
                    "content": [{"type": "text", "text": "1"}],
                    "cache_control": {"type": "ephemeral"},
                },
                {"type": "text", "text": "and?"},
            ],
        },
    ],
}


async def events(gateway: Gateway, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await gateway.post(PATH, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def test_a_whole_answer_has_blocks_and_why_it_ended() -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.post(
            PATH, json=ASKED, headers={"anthropic-version": "2026-10-21"}
        )
        body = answer.json()
        assert body["type"] == "message"
        assert body["content"] == [{"type": "text", "text": SAID}]
        assert body["stop_reason"] == "max_tokens"
        assert body["usage"]["input_tokens"] == len(chat_text(TURNS))
        assert body["usage"]["output_tokens"] == 5

    with_gateway(story)


def test_a_stream_has_the_events_in_the_order_that_clients_expect() -> None:
    async def story(gateway: Gateway) -> None:
        found = await events(gateway, ASKED)
        kinds = [each["type"] for each in found]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert found[0]["message"]["content"] == []
        assert "".join(each["delta"]["text"] for each in found[2:-3]) == SAID
        assert found[-2]["delta"]["stop_reason"] == "max_tokens"
        assert found[-2]["usage"]["output_tokens"] == 5

    with_gateway(story)


def test_what_claude_code_sends_is_read_and_answered_with_thoughts_and_calls() -> None:
    read: list[dict[str, Any]] = [
        {"role": "system", "content": "You are Claude Code.\nBe brief."},
        {"role": "user", "content": "look"},
        {
            **{"role": "assistant", "content": "I look."},
            "tool_calls": [
                {
                    **{"id": "t1", "type": "function"},
                    "function": {"name": "Read", "arguments": {"file_path": "a"}},
                }
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "t1"},
        {"role": "user", "content": "and?"},
    ]
    told = {
        "type": "function",
        "function": {
            **{"name": READ["name"], "description": READ["description"]},
            "parameters": READ["input_schema"],
        },
    }
    prompt = f"{json.dumps([told])}\n{chat_text(read)}"

    async def story(gateway: Gateway) -> None:
        found = await events(gateway, CLAUDE_CODE)
        assert found[0]["message"]["usage"]["input_tokens"] == len(prompt)
        blocks = [e["content_block"] for e in found if e["type"] == "content_block_start"]
        assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
        assert blocks[2]["name"] == "Read"
        deltas = [e["delta"] for e in found if e["type"] == "content_block_delta"]
        (arguments,) = [d["partial_json"] for d in deltas if d["type"] == "input_json_delta"]
        assert json.loads(arguments) == {"file_path": "a.py"}
        assert any(d["type"] == "signature_delta" for d in deltas)
        indices = [e["index"] for e in found if e["type"] == "content_block_stop"]
        assert indices == [0, 1, 2]
        assert found[-2]["delta"]["stop_reason"] == "tool_use"
        counted = {k: v for k, v in CLAUDE_CODE.items() if k not in ("max_tokens", "stream")}
        counted.pop("temperature")
        answer = await gateway.post(f"{PATH}/count_tokens?beta=true", counted)
        assert answer.json() == {"input_tokens": len(prompt)}

    with_gateway(story, says=f"<think>hm</think>I see.\n{CALL}", shown="<think>")


def test_a_whole_answer_with_a_call_has_its_input_as_an_object_and_no_unasked_thoughts() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {**ASKED, "max_tokens": 500, "tools": [READ]}
        body = (await gateway.post(PATH, asked)).json()
        text, use = body["content"]
        assert text == {"type": "text", "text": "I see."}
        assert use["input"] == {"file_path": "a.py"}
        assert body["stop_reason"] == "tool_use"

    with_gateway(story, says=f"<think>hm</think>I see.\n{CALL}", shown="<think>")


def test_the_stop_sequence_that_ended_an_answer_is_named() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {**ASKED, "max_tokens": 50, "stop_sequences": ["nine", "three"]}
        body = (await gateway.post(PATH, asked)).json()
        assert body["stop_reason"] == "stop_sequence"
        assert body["stop_sequence"] == "three"
        assert body["content"] == [{"type": "text", "text": "one two "}]

    with_gateway(story, says="one two three four nine")


@pytest.mark.parametrize(
    ("more", "status", "kind", "says"),
    [
        ({"model": "claude-x"}, 404, "not_found_error", "no model 'claude-x'"),
        ({"max_tokens": None}, 400, "invalid_request_error", "'max_tokens' is missing"),
        (
            {"output_config": {"format": {"type": "yaml"}}},
            *(400, "invalid_request_error", "response_format"),
        ),
        ({"anything": 1}, 400, "invalid_request_error", "'anything' is not supported"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "no tool to be called"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            *(400, "invalid_request_error", "'image'"),
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            *(400, "invalid_request_error", "custom"),
        ),
    ],
)
def test_errors_have_anthropics_form(
    more: dict[str, Any], status: int, kind: str, says: str
) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, **more})
        assert answer.status_code == status
        body = answer.json()
        assert body["type"] == "error"
        assert body["error"]["type"] == kind
        assert says in body["error"]["message"]

    with_gateway(story)
