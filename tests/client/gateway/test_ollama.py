"""Ollama's clients: what they send, and what they read of it line by line."""

import json
from typing import Any

import pytest

from tests.client.gateway.gateways import Gateway, answer_to, chat_text, with_gateway

TURNS = [{"role": "user", "content": "hello"}]
# as ollama 0.6.3 sends it: `tools` always, `stream` always explicit
ASKED: dict[str, Any] = {"model": "scripted", "stream": False, "messages": TURNS, "tools": []}
FIVE = {"num_predict": 5, "num_ctx": 2048}
SAID = answer_to(chat_text(TURNS), 5)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a cat"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


async def lines(gateway: Gateway, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await gateway.post(path, body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_chat_is_answered_whole_or_in_lines() -> None:
    async def story(gateway: Gateway) -> None:
        whole = (await gateway.post("/api/chat", {**ASKED, "options": FIVE})).json()
        assert whole["message"] == {"role": "assistant", "content": SAID}
        assert whole["done"] is True
        assert whole["done_reason"] == "length"
        assert whole["eval_count"] == 5
        assert whole["prompt_eval_count"] == len(chat_text(TURNS))
        streamed = await lines(gateway, "/api/chat", {**ASKED, "stream": True, "options": FIVE})
        assert "".join(line["message"]["content"] for line in streamed) == SAID
        assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]

    with_gateway(story)


def test_a_prompt_is_a_message_if_the_model_has_chats_and_plain_text_if_it_is_raw() -> None:
    async def chats(gateway: Gateway) -> None:
        asked = {"model": "scripted:latest", "prompt": "hello", "stream": False, "options": FIVE}
        body = (await gateway.post("/api/generate", asked)).json()
        assert body["response"] == SAID
        raw = (await gateway.post("/api/generate", {**asked, "raw": True})).json()
        assert raw["response"] == answer_to("hello", 5)
        streamed = await lines(gateway, "/api/generate", {**asked, "stream": True})
        assert "".join(line["response"] for line in streamed) == SAID

    with_gateway(chats, shown="template")


def test_calls_have_their_arguments_as_objects_and_thoughts_stand_apart() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {**ASKED, "tools": [TOOL]}
        whole = (await gateway.post("/api/chat", asked)).json()["message"]
        assert whole["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": "a cat"}}}]
        assert whole["thinking"] == "hm"
        streamed = await lines(gateway, "/api/chat", {**asked, "stream": True, "think": False})
        messages = [line["message"] for line in streamed]
        assert [m["tool_calls"] for m in messages if "tool_calls" in m] == [whole["tool_calls"]]
        assert not any("thinking" in message for message in messages)

    with_gateway(story, says=f"<think>hm</think>{CALL}", shown="<think>")


def test_a_model_is_listed_shown_and_loaded_already() -> None:
    async def story(gateway: Gateway) -> None:
        (model,) = (await gateway.http.get("/api/tags")).json()["models"]
        assert model["name"] == "scripted"
        assert model["details"]["format"] == "safetensors"
        shown = (await gateway.post("/api/show", {"model": "scripted"})).json()
        assert shown["model_info"]["llama.context_length"] == 4096
        assert "version" in (await gateway.http.get("/api/version")).json()
        for path in ("/api/chat", "/api/generate"):
            assert (await gateway.post(path, {"model": "scripted"})).json()["done_reason"] == "load"

    with_gateway(story)


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"model": "other"}, 404, "no model 'other'"),
        ({"format": "yaml"}, 400, "format is 'yaml'"),
        ({"options": {"mirostat": 1}}, 400, "'mirostat'"),
        ({"options": {"anything": 1}}, 400, "options.anything"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "'images'"),
    ],
)
def test_errors_are_plain_text_as_its_clients_show_them(
    more: dict[str, Any], status: int, says: str
) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post("/api/chat", {**ASKED, **more})
        assert answer.status_code == status
        assert says in answer.json()["error"]

    with_gateway(story)


def test_texts_and_chats_become_ids_and_ids_text() -> None:
    async def story(gateway: Gateway) -> None:
        plain = (await gateway.post("/tokenize", {"prompt": "hé"})).json()
        assert plain == {"count": 3, "max_model_len": 4096, "tokens": list("hé".encode())}
        chat = (await gateway.post("/tokenize", {"messages": TURNS})).json()
        assert chat["tokens"] == list(chat_text(TURNS).encode())
        text = (await gateway.post("/detokenize", {"tokens": plain["tokens"]})).json()
        assert text == {"prompt": "hé"}
        assert (await gateway.post("/detokenize", {"tokens": [300]})).status_code == 400
        assert (await gateway.post("/tokenize", {})).status_code == 400

    with_gateway(story)
