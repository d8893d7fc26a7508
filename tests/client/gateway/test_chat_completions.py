"""Chats as OpenAI's clients ask and read them."""

from typing import Any

import pytest

from tests.client.gateway.gateways import Gateway, answer_to, chat_text, with_gateway

PATH = "/v1/chat/completions"
TURNS = [{"role": "user", "content": "hello"}]
ASKED = {"model": "scripted", "messages": TURNS, "max_tokens": 5}
SAID = answer_to(chat_text(TURNS), 5)


def test_a_whole_answer_has_its_text_its_usage_and_its_route() -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, ASKED)
        assert answer.status_code == 200
        body = answer.json()
        assert body["object"] == "chat.completion"
        assert body["model"] == "scripted"
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": SAID, "refusal": None}
        assert choice["finish_reason"] == "length"
        asked = len(chat_text(TURNS))
        assert body["usage"] == {
            "prompt_tokens": asked,
            "completion_tokens": 5,
            "total_tokens": asked + 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert body["timings"]["predicted_n"] == 5
        assert answer.headers["x-swarm-route"].startswith("0-3@")
        assert answer.headers["x-swarm-nodes"] == "2"
        assert "compute;dur=" in answer.headers["server-timing"]
        assert answer.headers["x-request-id"].startswith("req_")

    with_gateway(story)


def test_a_stream_tells_the_role_the_pieces_the_end_and_nothing_more() -> None:
    async def story(gateway: Gateway) -> None:
        events = await gateway.events(PATH, ASKED)
        assert all(len(event["choices"]) == 1 for event in events)
        deltas = [event["choices"][0] for event in events]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in deltas) == SAID
        assert [each["finish_reason"] for each in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert len({event["id"] for event in events}) == 1
        assert events[-1]["timings"]["predicted_n"] == 5

    with_gateway(story)


def test_usage_comes_in_a_stream_to_whom_it_was_asked_for() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {**ASKED, "stream_options": {"include_usage": True}}
        *others, last = await gateway.events(PATH, asked)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 5
        assert all("usage" not in other for other in others)

    with_gateway(story)


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        (
            [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [("user", "a\nb")],
        ),
        (
            [{"role": "developer", "content": "one"}, {"role": "system", "content": "two"}, {}],
            [("system", "one\n\ntwo"), ("user", "hello")],
        ),
        ([{}, {"role": "assistant", "content": None}], [("user", "hello"), ("assistant", "")]),
        ([{"content": [{"type": "text", "text": "x", "cache_control": {}}]}], [("user", "x")]),
    ],
    ids=["parts", "several systems", "null", "cache control"],
)
def test_messages_are_read_in_every_form_that_clients_send(
    turns: list[dict[str, Any]], read: list[tuple[str, str]]
) -> None:
    messages = [{"role": "user", "content": "hello", **turn} for turn in turns]
    text = chat_text([{"role": role, "content": content} for role, content in read])

    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, {**ASKED, "messages": messages})).json()
        assert body["choices"][0]["message"]["content"] == answer_to(text, 5)

    with_gateway(story)


def test_fields_that_change_no_answer_are_passed_over_and_null_means_absent() -> None:
    more = {
        **{"store": False, "metadata": {}, "prompt_cache_key": "k", "service_tier": "auto"},
        **{"safety_identifier": "s", "verbosity": "low", "reasoning": {"effort": "low"}},
        **{"user": "u", "parallel_tool_calls": True, "tools": [], "stop": None},
        **{"max_completion_tokens": None, "logprobs": None, "response_format": None},
        **{"temperature": 0, "anything": None},
    }

    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, {**ASKED, **more})).json()
        assert body["choices"][0]["message"]["content"] == SAID

    with_gateway(story)


@pytest.mark.parametrize(
    ("field", "value", "param", "says"),
    [
        ("anything", 1, "anything", "'anything' is not supported"),
        ("functions", [], "functions", "'functions' is not supported"),
        ("logit_bias", {"1": 500}, "logit_bias", "logit_bias"),
        ("top_logprobs", 3, "top_logprobs", "needs logprobs"),
        ("n", 9, "n", "between 1 and 8"),
        ("max_tokens", 0, "max_tokens", "at least 1"),
        ("max_tokens", "many", "max_tokens", "valid integer"),
        ("temperature", -1, "temperature", "temperature is -1"),
        ("temperature", True, "temperature", "valid number"),
        ("messages", [], "messages", "at least 1 item"),
        ("messages", [{"role": "cook", "content": ""}], "messages[0].role", "'system'"),
        ("messages", [{"role": "user", "content": 5}], "messages[0].content", "valid"),
        ("messages", [{"role": "user", "wrong": 5}], "messages[0].wrong", "not supported"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages", "image"),
        ("stop", [""], "stop", "1 to 256 characters"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    field: str, value: object, param: str, says: str
) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, field: value})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert says in error["message"]

    with_gateway(story)


def test_choices_differ_when_they_are_sampled_and_are_repeated_with_their_seed() -> None:
    asked = {**ASKED, "n": 3, "seed": 5}

    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, asked)).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 15
        assert body["usage"]["prompt_tokens"] == len(chat_text(TURNS))
        seeds = [opened["seed"] for opened in gateway.stages[1].samplings]
        assert sorted(seeds) == [5, 6, 7]
        events = await gateway.events(PATH, asked)
        ends = [e["choices"][0]["index"] for e in events if e["choices"][0]["finish_reason"]]
        assert sorted(ends) == [0, 1, 2]

    with_gateway(story)


def test_how_tokens_are_chosen_reaches_the_stages_as_it_was_asked_for() -> None:
    asked = {"top_p": 0.5, "top_k": 7, "min_p": 0.1, "presence_penalty": 1, "seed": 3}
    asked |= {"frequency_penalty": -0.5, "repetition_penalty": 1.5, "temperature": 0.25}

    async def story(gateway: Gateway) -> None:
        more = {"logit_bias": {"5": 2}, "top_k": 7}
        assert (await gateway.post(PATH, {**ASKED, **asked, **more})).status_code == 200
        assert (await gateway.post(PATH, {**ASKED, "top_k": -1, "seed": -1})).status_code == 200
        first, second = gateway.stages[1].samplings
        assert first == {**first, **asked}
        assert first["logit_bias"] == [5, 2.0]
        assert "top_k" not in second
        assert second["temperature"] == 1.0
        assert second["seed"] >= 0

    with_gateway(story)


def test_log_probabilities_are_told_whole_and_in_streams() -> None:
    asked = {**ASKED, "logprobs": True, "top_logprobs": 2}

    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, asked)).json()
        told = body["choices"][0]["logprobs"]["content"]
        assert "".join(each["token"] for each in told) == SAID
        assert [each["logprob"] for each in told] == [-0.5] * 5
        assert told[0]["bytes"] == [ord(SAID[0])]
        before = chr(ord(SAID[0]) - 1)
        assert [each["token"] for each in told[0]["top_logprobs"]] == [SAID[0], before]
        choices = [event["choices"][0] for event in await gateway.events(PATH, asked)]
        streamed = [each for c in choices if c["logprobs"] for each in c["logprobs"]["content"]]
        assert streamed == told

    with_gateway(story)


def test_an_answer_whose_length_nobody_chose_may_fill_the_context() -> None:
    room = 4096 - len(chat_text(TURNS))

    async def story(gateway: Gateway) -> None:
        gateway.stages[1].hook = lambda stage, peer, message: False
        for asked in ({}, {"max_tokens": None}, {"max_tokens": 100_000}):
            body = {"messages": TURNS, **asked, "stop": SAID[3]}
            answer = (await gateway.post(PATH, body)).json()
            assert answer["choices"][0]["finish_reason"] == "stop"
        most = [sampling["max_tokens"] for sampling in gateway.stages[1].samplings]
        assert most == [room, room, room]

    with_gateway(story)


def test_a_prompt_that_outgrows_the_context_is_refused_as_openai_does() -> None:
    async def story(gateway: Gateway) -> None:
        body = {**ASKED, "messages": [{"role": "user", "content": "x" * 5000}]}
        answer = await gateway.post(PATH, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"

    with_gateway(story)


def test_a_model_that_is_not_served_is_not_found() -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, "model": "gpt-x"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert "Served: scripted" in answer.json()["error"]["message"]

    with_gateway(story)
