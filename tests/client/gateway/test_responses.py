"""OpenAI's Responses API: what its client and Codex send, and the events that they read."""

import json
from dataclasses import replace
from typing import Any

import pytest

from swarm.wire.messages import Message, Step
from tests.client.gateway.gateways import SETTINGS, Gateway, answer_to, chat_text, with_gateway
from tests.client.scripted import ScriptedStage

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "scripted", "input": "hi"}
FIVE = {**ASKED, "max_output_tokens": 5}
SAID = answer_to(chat_text([{"role": "user", "content": "hi"}]), 5)
CALL = '<tool_call>\n{"name": "shell", "arguments": {"command": ["ls"]}}\n</tool_call>'
SHELL = {
    **{"type": "function", "name": "shell", "description": "Runs a command.", "strict": False},
    "parameters": {"type": "object", "properties": {"command": {"type": "array"}}},
}
# as Codex sends it: exactly these fields, the whole history every turn, tools of every type
CODEX: dict[str, Any] = {
    "model": "scripted",
    "instructions": "You are Codex.",
    "input": [
        {
            **{"type": "message", "role": "developer"},
            "content": [{"type": "input_text", "text": "Be brief."}],
        },
        {
            **{"type": "message", "role": "user"},
            "content": [{"type": "input_text", "text": "list"}],
        },
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {
            **{"type": "message", "role": "assistant"},
            "content": [{"type": "output_text", "text": "I look."}],
        },
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
    ],
    "tools": [
        SHELL,
        {"type": "namespace", "name": "mcp", "tools": []},
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation", "output_format": "png"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "client_metadata": {"originator": "codex"},
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
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def test_a_whole_response_has_its_output_and_why_it_ended() -> None:
    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, FIVE)).json()
        assert body["object"] == "response"
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
        (item,) = body["output"]
        assert item["type"] == "message"
        assert item["content"][0]["text"] == SAID
        assert body["usage"]["output_tokens"] == 5
        assert body["usage"]["input_tokens_details"] == {"cached_tokens": 0}

    with_gateway(story)


def test_a_stream_has_every_event_that_clients_wait_for() -> None:
    async def story(gateway: Gateway) -> None:
        found = await events(gateway, FIVE)
        kinds = [each["type"] for each in found]
        assert kinds[:4] == [
            *("response.created", "response.in_progress"),
            *("response.output_item.added", "response.content_part.added"),
        ]
        assert kinds[-4:] == [
            *("response.output_text.done", "response.content_part.done"),
            *("response.output_item.done", "response.incomplete"),
        ]
        deltas = [each for each in found if each["type"] == "response.output_text.delta"]
        assert "".join(each["delta"] for each in deltas) == SAID
        assert all((each["output_index"], each["content_index"]) == (0, 0) for each in deltas)
        item = found[-2]["item"]
        assert {each["item_id"] for each in deltas} == {item["id"]}
        assert found[-1]["response"]["output"] == [item]

    with_gateway(story)


def test_what_codex_sends_is_read_and_its_call_comes_as_an_item() -> None:
    read: list[dict[str, Any]] = [
        {"role": "system", "content": "You are Codex.\n\nBe brief."},
        {"role": "user", "content": "list"},
        {
            **{"role": "assistant", "content": "I look."},
            "tool_calls": [
                {
                    **{"id": "c1", "type": "function"},
                    "function": {"name": "shell", "arguments": {}},
                }
            ],
        },
        {"role": "tool", "content": "a.py", "tool_call_id": "c1"},
    ]
    told = {name: SHELL[name] for name in ("name", "description", "parameters")}
    prompt = f"{json.dumps([{'type': 'function', 'function': told}])}\n{chat_text(read)}"

    async def story(gateway: Gateway) -> None:
        found = await events(gateway, CODEX)
        completed = found[-1]
        assert completed["type"] == "response.completed"
        assert completed["response"]["usage"]["input_tokens"] == len(prompt)
        thought, message, call = completed["response"]["output"]
        assert thought["content"][0]["text"] == "hm"
        assert message["content"][0]["text"] == "So:"
        assert call["type"] == "function_call"
        assert json.loads(call["arguments"]) == {"command": ["ls"]}
        done = [e["item"] for e in found if e["type"] == "response.output_item.done"]
        assert done == completed["response"]["output"]
        names = {each["type"] for each in found}
        assert "response.reasoning_text.delta" in names
        assert "response.function_call_arguments.done" in names
        whole = (await gateway.post(PATH, {**CODEX, "stream": False})).json()
        assert [item["type"] for item in whole["output"]] == [item["type"] for item in done]

    with_gateway(story, says=f"<think>hm</think>So:\n{CALL}{CALL}", shown="<think>")


def test_codex_may_probe_with_nothing() -> None:
    async def story(gateway: Gateway) -> None:
        probe = {"model": "scripted", "input": [], "max_output_tokens": 1, "stream": True}
        found = await events(gateway, probe)
        assert found[-1]["response"]["usage"]["output_tokens"] == 1

    with_gateway(story)


def test_a_response_that_fails_says_so_to_codex_and_to_openais_client() -> None:
    def silent(stage: ScriptedStage, peer: str, message: Message) -> bool:
        return isinstance(message, Step)

    async def story(gateway: Gateway) -> None:
        gateway.stages[1].hook = silent
        *_, failed, error = await events(gateway, ASKED)
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"]["message"] == error["error"]["message"]
        assert error["type"] == "error"

    with_gateway(story, replace(SETTINGS, timeout_seconds=0.1))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "yaml"}}}, "response_format"),
        ({"tools": [{"type": "mcp", "server_url": "https://x.example"}]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "nothing"}}, "tool_choice"),
        ({"input": [{"type": "computer_call", "call_id": "c"}]}, "input"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, **more})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param

    with_gateway(story)
