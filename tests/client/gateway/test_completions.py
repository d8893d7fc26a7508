"""Completions of texts and ids, and the pages that say what is served."""

from dataclasses import replace

import pytest

from tests.client.gateway.gateways import SETTINGS, Gateway, answer_to, with_gateway

PATH = "/v1/completions"


def test_several_prompts_are_answered_in_order_each_as_often_as_asked() -> None:
    async def story(gateway: Gateway) -> None:
        asked = {"prompt": ["ab", "hello"], "n": 2, "max_tokens": 4}
        body = (await gateway.post(PATH, asked)).json()
        assert body["object"] == "text_completion"
        texts = [choice["text"] for choice in body["choices"]]
        assert texts == [answer_to("ab", 4)] * 2 + [answer_to("hello", 4)] * 2
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert body["usage"]["prompt_tokens"] == len("ab") + len("hello")
        assert body["usage"]["completion_tokens"] == 16

    with_gateway(story)


@pytest.mark.parametrize("prompt", [list(b"hello"), [list(b"hello")], "hello"])
def test_ids_are_as_good_as_text(prompt: object) -> None:
    async def story(gateway: Gateway) -> None:
        body = (await gateway.post(PATH, {"prompt": prompt})).json()
        assert body["choices"][0]["text"] == answer_to("hello", 16)

    with_gateway(story)


def test_a_stream_has_the_pieces_and_the_end() -> None:
    async def story(gateway: Gateway) -> None:
        events = await gateway.events(PATH, {"prompt": "hello", "max_tokens": 3})
        choices = [event["choices"][0] for event in events]
        assert "".join(choice["text"] for choice in choices) == answer_to("hello", 3)
        assert choices[-1]["finish_reason"] == "length"

    with_gateway(story)


def test_log_probabilities_are_told_with_the_places_of_their_tokens() -> None:
    asked = {"prompt": "hello", "max_tokens": 3, "logprobs": 1}

    async def story(gateway: Gateway) -> None:
        told = (await gateway.post(PATH, asked)).json()["choices"][0]["logprobs"]
        text = answer_to("hello", 3)
        assert told["tokens"] == list(text)
        assert told["token_logprobs"] == [-0.5] * 3
        assert told["top_logprobs"] == [{letter: -0.5} for letter in text]
        assert told["text_offset"] == [0, 1, 2]
        choices = [event["choices"][0] for event in await gateway.events(PATH, asked)]
        offsets = [at for c in choices if c["logprobs"] for at in c["logprobs"]["text_offset"]]
        assert offsets == [0, 1, 2]

    with_gateway(story)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, None),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(more: dict[str, object], param: str) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.post(PATH, {"prompt": "hello", **more})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param

    with_gateway(story)


def test_models_are_listed_with_the_context_that_they_have_here() -> None:
    named = replace(SETTINGS, names=("big/model", "small"), max_model_len=100)

    async def story(gateway: Gateway) -> None:
        listed = (await gateway.http.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["big/model", "small"]
        one = (await gateway.http.get("/v1/models/big/model")).json()
        assert one["max_model_len"] == one["context_length"] == 100
        assert one["object"] == "model"
        assert (await gateway.http.get("/v1/models/other")).status_code == 404
        long = await gateway.post(PATH, {"prompt": "x" * 100})
        assert long.json()["error"]["code"] == "context_length_exceeded"

    with_gateway(story, named)


def test_health_tells_whether_every_layer_is_served() -> None:
    async def ready(gateway: Gateway) -> None:
        answer = await gateway.http.get("/health/ready")
        assert answer.status_code == 200
        assert answer.json()["subsystems"]["route"]["stages"] == 2

    async def degraded(gateway: Gateway) -> None:
        answer = await gateway.http.get("/health/ready")
        assert answer.status_code == 503
        assert "layers 4-5" in answer.json()["subsystems"]["route"]["reason"]
        alive = await gateway.http.get("/health")
        assert alive.status_code == 200
        assert alive.json()["serving"]["status"] == "degraded"

    with_gateway(ready)
    with_gateway(degraded, layers=4)
