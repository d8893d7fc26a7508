"""Who may ask: keys in the forms that clients send them, and web pages that are allowed."""

from dataclasses import replace

import pytest

from client.gateway.http.quota import Quota
from client.gateway.http.settings import GatewaySettings
from swarm.errors import BadInput
from tests.client.gateway.gateways import SETTINGS, Gateway, with_gateway

LOCKED = replace(SETTINGS, api_keys=("one", "two"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "Bearer two"}, 200),
        ({"authorization": "bearer one"}, 200),
        ({"x-api-key": "one"}, 200),
        ({"api-key": "two", "authorization": "Bearer x"}, 200),
    ],
)
def test_any_of_the_keys_opens_in_every_form(headers: dict[str, str], status: int) -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.get("/v1/models", headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"

    with_gateway(story, LOCKED)


def test_without_keys_everybody_may_ask_also_with_an_empty_one() -> None:
    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.get("/v1/models", headers={"authorization": "Bearer "})
        assert answer.status_code == 200

    with_gateway(story)


def test_health_needs_no_key() -> None:
    async def story(gateway: Gateway) -> None:
        assert (await gateway.http.get("/health")).status_code == 200

    with_gateway(story, LOCKED)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("http://evil.example", 403),
        ("http://good.example", 200),
        ("null", 403),
    ],
)
def test_web_pages_may_ask_if_they_are_ours_or_allowed(origin: str, status: int) -> None:
    allowing = replace(SETTINGS, allowed_origins=frozenset({"http://good.example"}))

    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.get("/v1/models", headers={"origin": origin})
        assert answer.status_code == status
        shared = answer.headers.get("access-control-allow-origin")
        assert shared == (origin if "good" in origin else None)

    with_gateway(story, allowing)


def test_a_preflight_is_answered_for_allowed_pages_alone() -> None:
    allowing = replace(LOCKED, allowed_origins=frozenset({"http://good.example"}))

    async def story(gateway: Gateway) -> None:
        for origin, status in (("http://good.example", 204), ("http://evil.example", 403)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answer = await gateway.http.options("/v1/chat/completions", headers=headers)
            assert answer.status_code == status

    with_gateway(story, allowing)


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("localhost:8000", 200), ("evil.example:8000", 403)]
)
def test_a_name_that_is_not_ours_is_refused(host: str, status: int) -> None:
    ours = replace(SETTINGS, allowed_hosts=frozenset({"localhost"}))

    async def story(gateway: Gateway) -> None:
        answer = await gateway.http.get("/v1/models", headers={"host": host})
        assert answer.status_code == status

    with_gateway(story, ours)


def test_each_key_has_a_quota_of_its_own_that_fills_as_time_goes_on() -> None:
    clock = [0.0]
    quota = Quota(2, lambda: clock[0])
    assert [quota.take(b"one") for _ in range(2)] == [None, None]
    refused = quota.take(b"one")
    assert refused is not None
    assert refused.headers() == {"x-should-retry": "true", "retry-after": "30"}
    assert quota.take(b"two") is None
    clock[0] = 29.0
    assert quota.take(b"one") is not None
    clock[0] = 31.0
    assert quota.take(b"one") is None
    assert quota.take(b"one") is not None


def test_who_has_asked_too_often_is_refused_and_may_still_look_around() -> None:
    few = replace(LOCKED, requests_per_minute=1)

    async def story(gateway: Gateway) -> None:
        asked = {"prompt": "hello", "max_tokens": 1}
        one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        for headers, status in ((one, 200), (one, 429), (two, 200), ({}, 401)):
            answer = await gateway.post("/v1/completions", asked, headers=headers)
            assert answer.status_code == status
        assert (await gateway.http.get("/v1/models", headers=one)).status_code == 200

    with_gateway(story, few)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(BadInput, match="API key is empty"):
        GatewaySettings(api_keys=("",))
    with pytest.raises(BadInput, match="requests_per_minute is 0"):
        GatewaySettings(requests_per_minute=0)
    with pytest.raises(BadInput, match="max_model_len is 1"):
        GatewaySettings(max_model_len=1)
