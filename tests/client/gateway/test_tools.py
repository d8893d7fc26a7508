"""Tools in chats: told to the model, found in what it writes, and written as clients read them."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from tests.client.gateway.gateways import Gateway, answer_to, chat_text, with_gateway

PATH = "/v1/chat/completions"
TURNS: list[dict[str, Any]] = [{"role": "user", "content": "look"}]
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "", "parameters": {"type": "object"}},
}
ASKED = {"messages": TURNS, "tools": [TOOL]}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a cat"}}\n</tool_call>'


def test_a_call_ends_an_answer_as_such_and_text_before_it_stays() -> None:
    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, ASKED)).json()
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "I see."
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert call["id"].startswith("call_")
        assert call["function"] == {"name": "look", "arguments": '{"at": "a cat"}'}

    with_gateway(story, says=f"I see.\n{CALL}")


def test_a_stream_gives_calls_their_index_and_the_right_end() -> None:
    async def story(gateway: Gateway) -> None:
        events = await gateway.events(PATH, ASKED)
        choices = [event["choices"][0] for event in events]
        calls = [c["delta"]["tool_calls"][0] for c in choices if "tool_calls" in c["delta"]]
        assert [call["index"] for call in calls] == [0, 1]
        assert len({call["id"] for call in calls}) == 2
        assert {call["function"]["arguments"] for call in calls} == {'{"at": "a cat"}'}
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert "".join(c["delta"].get("content") or "" for c in choices) == ""

    with_gateway(story, says=f"{CALL}\n{CALL}")


def test_where_calls_may_not_be_parallel_there_is_one() -> None:
    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, {**ASKED, "parallel_tool_calls": False})).json()
        message = body["choices"][0]["message"]
        assert len(message["tool_calls"]) == 1
        assert message["content"] is None

    with_gateway(story, says=f"{CALL}\n{CALL}")


def test_a_call_that_is_cut_off_is_text_and_its_end_is_length() -> None:
    async def story(gateway: Gateway) -> None:
        (choice,) = (await gateway.post(PATH, {**ASKED, "max_tokens": 30})).json()["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == CALL[:30]
        assert "tool_calls" not in choice["message"]

    with_gateway(story, says=CALL)


def test_what_looks_like_a_call_is_text_where_no_tools_were_named() -> None:
    async def story(gateway: Gateway) -> None:
        changes: list[dict[str, Any]] = [{"tools": []}, {"tool_choice": "none"}]
        for change in changes:
            body = (await gateway.post(PATH, {**ASKED, **change})).json()
            assert body["choices"][0]["message"]["content"] == CALL
            assert body["choices"][0]["finish_reason"] == "stop"

    with_gateway(story, says=CALL)


def test_the_template_reads_tools_calls_and_results() -> None:
    function = {"name": "look", "arguments": '{"at": "a cat"}'}
    call = {"id": "c1", "type": "function", "function": function}
    turns = [
        *TURNS,
        {"role": "assistant", "content": None, "tool_calls": [{**call, "index": 0}]},
        {"role": "tool", "tool_call_id": "c1", "content": "purr"},
    ]
    read = [
        TURNS[0],
        {
            **{"role": "assistant", "content": ""},
            "tool_calls": [{**call, "function": {"name": "look", "arguments": {"at": "a cat"}}}],
        },
        {"role": "tool", "content": "purr", "tool_call_id": "c1"},
    ]
    text = f"{json.dumps([TOOL])}\n{chat_text(read)}"

    async def story(gateway: Gateway) -> None:
        asked = {"messages": turns, "tools": [TOOL], "max_tokens": 4}
        body = (await gateway.post(PATH, asked)).json()
        assert body["choices"][0]["message"]["content"] == answer_to(text, 4)

    with_gateway(story)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "hear"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_tools_that_cannot_be_are_refused_by_name(more: dict[str, Any], param: str) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, **more})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param

    with_gateway(story)


@pytest.mark.parametrize(
    ("shown", "choice", "matches", "fails"),
    [
        ("", "required", f"{CALL}\n{CALL}", "Hello"),
        ("", {"type": "function", "function": {"name": "look"}}, CALL, f"{CALL}\n{CALL}"),
        ("<tool_call><function=", "required", CALL, "<tool_call><function=look>"),
        ("[TOOL_CALLS]", "required", '{"name": "look", "parameters": {}}', CALL),
    ],
    ids=["any", "named", "xml", "json"],
)
def test_where_a_tool_must_be_called_a_grammar_sees_to_it(
    shown: str, choice: object, matches: str, fails: str
) -> None:
    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, {**ASKED, "tool_choice": choice})).json()
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        (sampling,) = gateway.stages[1].samplings
        kind, text = sampling["grammar"]
        assert kind == "lark"
        assert follows(text, matches)
        assert not follows(text, fails)
        assert not follows(text, matches.replace(": ", ":\n"))

    with_gateway(story, says=matches, shown=shown)


def follows(grammar: str, text: str) -> bool:
    """Whether a text is one of a grammar, byte by byte."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    ids = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_thoughts_are_told_apart_from_the_answer() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {"messages": TURNS}
        message = (await gateway.post(PATH, asked)).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "hm"
        assert message["content"] == "Yes."
        deltas = [event["choices"][0]["delta"] for event in await gateway.events(PATH, asked)]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
        assert "".join(delta.get("content", "") for delta in deltas) == "Yes."

    with_gateway(story, says="<think>\nhm\n</think>\n\nYes.", shown="<think>")
