"""What goes wrong, as clients can read it: before the first byte, and after it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from client.gateway.http.api_error import failure_of
from client.gateway.http.settings import GatewaySettings
from client.text.tokenizer import NoTokenizer
from swarm.errors import BadInvite, BadModel, Deadline, PeerLost, PeerRefused, Unreachable
from swarm.wire.messages import Message, Open, Step
from tests.client.gateway.gateways import SETTINGS, Gateway, with_gateway
from tests.client.scripted import ScriptedStage

PATH = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_layers_that_nobody_serves_are_named_and_not_worth_a_retry(is_streamed: bool) -> None:
    patient = replace(SETTINGS, timeout_seconds=0.1, patience_seconds=5.0)

    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {**ASKED, "stream": is_streamed})
        assert answer.status_code == 503
        assert answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
        assert error["code"] == "no_route"
        assert "layers 4-5" in error["message"]

    with_gateway(story, patient, layers=4)


def test_a_stream_that_has_begun_ends_with_an_error_never_as_if_it_were_whole() -> None:
    def silent_at_the_third(stage: ScriptedStage, peer: str, message: Message) -> bool:
        return isinstance(message, Step) and message.position > 24

    async def story(gateway: Gateway) -> None:
        gateway.stages[1].hook = silent_at_the_third
        answer = await gateway.post(PATH, {**ASKED, "stream": True})
        assert answer.status_code == 200
        lines = [line for line in answer.text.split("\n\n") if line]
        assert any(line.startswith(": waiting for ") for line in lines)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "data: [DONE]" not in lines
        assert events[-1]["error"]["code"] in ("timeout", "peer_lost")
        assert any(event["choices"][0]["delta"].get("content") for event in events[:-1])

    with_gateway(story, replace(SETTINGS, timeout_seconds=0.2))


def test_a_bug_of_ours_is_an_error_object_too(caplog: pytest.LogCaptureFixture) -> None:
    async def story(gateway: Gateway) -> None:
        gateway.client.ask_together = broken  # type: ignore[method-assign,assignment]
        answer = await gateway.post(PATH, ASKED)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "broken" not in answer.text

    def broken(request: object) -> None:
        raise RuntimeError("broken")

    with_gateway(story)
    assert "an answer failed" in caplog.text


def test_who_comes_when_all_places_are_taken_waits_in_line_or_is_sent_away() -> None:
    narrow = replace(SETTINGS, most_running=1, most_waiting=1, timeout_seconds=5.0)
    held: list[tuple[ScriptedStage, str, Message]] = []

    def hold(stage: ScriptedStage, peer: str, message: Message) -> bool:
        if isinstance(message, Open):
            held.append((stage, peer, message))
        return isinstance(message, Open)

    async def story(gateway: Gateway) -> None:
        first = gateway.stages[0]
        first.hook = hold
        asked = [asyncio.create_task(gateway.post(PATH, ASKED)) for _ in range(3)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        answer = refused.result()
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        first.hook = lambda stage, peer, message: False
        for stage, peer, message in held:
            stage.on_message(peer, message)
        others = [await task for task in asked if task is not refused]
        assert [other.status_code for other in others] == [200, 200]

    with_gateway(story, narrow)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (PeerRefused("Busy.", retry_after_seconds=2.5), 503, "3"),
        (PeerRefused("Busy.", retry_after_seconds=500.0), 503, "120"),
        (PeerLost("Gone."), 503, "1"),
        (Deadline("Late."), 504, "1"),
        (Unreachable("Nobody."), 503, "1"),
    ],
)
def test_what_may_pass_says_when_to_come_again(
    error: PeerLost, status: int, retry_after: str
) -> None:
    problem = failure_of(error)
    assert problem.status == status
    assert problem.headers() == {"x-should-retry": "true", "retry-after": retry_after}


@pytest.mark.parametrize("error", [BadInvite("The swarm is over."), BadModel("Other files.")])
def test_what_ails_the_gateway_itself_is_no_fault_of_the_client(error: BadInvite) -> None:
    problem = failure_of(error)
    assert problem.status == 503
    assert problem.headers() == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/v1/nothing", 404, "'GET /v1/nothing' is not served"),
        ("POST", "/v1/embeddings", 404, "/v1/embeddings"),
        ("GET", PATH, 405, "is not served"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    method: str, path: str, status: int, says: str
) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.request(method, path)
        assert answer.status_code == status
        assert says in answer.json()["error"]["message"]

    with_gateway(story)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "no valid JSON"),
        (b"[]", "valid dictionary"),
        (b"", "body is missing"),
        (b'{"model": "scripted"}', "'messages' is missing"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid Unicode"),
        (b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}', "unicode"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_body_that_is_none_is_refused_in_words(body: bytes, says: str) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.post(PATH, content=body)
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]

    with_gateway(story)


def test_text_for_a_model_without_a_tokenizer_is_refused_and_ids_are_not() -> None:
    async def story(gateway: Gateway) -> None:
        local = await gateway.client.model()
        gateway.client._local = replace(local, tokenizer=NoTokenizer("It has no tokenizer."))
        refused = await gateway.post("/v1/completions", {"prompt": "hello", "max_tokens": 2})
        assert refused.status_code == 400
        assert "Give ids in place of text" in refused.json()["error"]["message"]
        answered = await gateway.post("/v1/completions", {"prompt": [104, 105], "max_tokens": 2})
        assert answered.status_code == 200

    with_gateway(story)


def test_a_body_that_is_too_large_is_not_read() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 60

    async def story(gateway: Gateway) -> None:
        announced = await gateway.http.post(PATH, content=b"x" * 101)
        unannounced = await gateway.http.post(PATH, content=pieces())
        for answer in (announced, unannounced):
            assert answer.status_code == 413
            assert "more than 100 bytes" in answer.json()["error"]["message"]

    with_gateway(story, GatewaySettings(most_body_bytes=100))
