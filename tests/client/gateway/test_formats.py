"""Answers that follow a format, however clients say it: the same grammar reaches the stages."""

from typing import Any

import pytest

from tests.client.gateway.gateways import Gateway, with_gateway

TURNS = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}}
TEXT = '{"type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}}'
CHAT = "/v1/chat/completions"
STRICT = {"name": "output", "strict": True, "schema": SCHEMA}


@pytest.mark.parametrize(
    ("path", "asked", "grammar"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": STRICT}}, TEXT),
        (CHAT, {"response_format": {"type": "json_object", "schema": SCHEMA}}, TEXT),
        (CHAT, {"response_format": {"type": "json_object"}}, '{"type": "object"}'),
        (CHAT, {"response_format": {"type": "text"}}, None),
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, TEXT),
        (
            *("/v1/responses",),
            {"input": "hi", "text": {"format": {"type": "json_schema", **STRICT}}},
            TEXT,
        ),
        (
            *("/v1/messages",),
            {
                "max_tokens": 9,
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            },
            TEXT,
        ),
        ("/api/chat", {"model": "scripted", "stream": False, "format": SCHEMA}, TEXT),
        (
            "/api/chat",
            {"model": "scripted", "stream": False, "format": "json"},
            '{"type": "object"}',
        ),
    ],
)
def test_every_dialect_of_a_format_is_the_same_grammar(
    path: str, asked: dict[str, Any], grammar: str | None
) -> None:
    async def story(gateway: Gateway) -> None:
        messages = {} if "input" in asked else {"messages": TURNS}
        answer = await gateway.post(path, {**messages, **asked})
        assert answer.status_code == 200, answer.text
        (sampling,) = gateway.stages[1].samplings
        assert sampling.get("grammar") == (["json_schema", grammar] if grammar else None)

    with_gateway(story, says="{}")


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_option() -> None:
    schema = {"type": "object", "unevaluatedProperties": {"type": "string"}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}

    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(CHAT, {"messages": TURNS, "response_format": form})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "response_format"

    with_gateway(story)
