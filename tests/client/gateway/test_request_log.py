"""The line that each request leaves in the log: what it cost, and not a word of its text."""

import logging

import pytest

from tests.client.gateway.gateways import Gateway, with_gateway

SECRET = "my secret"


def test_a_line_tells_figures_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    async def story(gateway: Gateway) -> None:
        asked = {"prompt": SECRET, "max_tokens": 9}
        body = (await gateway.post("/v1/completions", asked)).json()
        said.append(body["choices"][0]["text"])
        await gateway.post("/v1/completions?key=hidden", {"prompt": SECRET, SECRET: 1})

    with caplog.at_level(logging.INFO, "client.gateway"):
        with_gateway(story)
    lines = [each.getMessage() for each in caplog.records if "request_log" in each.name]
    assert len(lines) == 2
    assert lines[0].startswith("POST /v1/completions 200 ")
    assert f"{len(SECRET)} tokens in, 9 out" in lines[0]
    assert "via 2 peers" in lines[0]
    assert lines[1].startswith("POST /v1/completions 400 ")
    assert not any(word in line for line in lines for word in (SECRET, said[0], "hidden"))
