"""What a gateway counts: every answer once, by how it ended, and nobody by name."""

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from swarm.wire.messages import Message, Open
from tests.client.gateway.gateways import SETTINGS, Gateway, chat_text, with_gateway
from tests.client.scripted import ScriptedStage

PATH = "/v1/chat/completions"
TURNS = [{"role": "user", "content": "hello"}]
ASKED = {"messages": TURNS, "max_tokens": 5}


async def figures(gateway: Gateway) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus reads them."""
    answer = await gateway.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [s for family in text_string_to_metric_families(answer.text) for s in family.samples]
    return {"/".join([s.name, *sorted(s.labels.values())]): s.value for s in samples}


def test_answers_are_counted_with_their_tokens_and_times() -> None:
    async def story(gateway: Gateway) -> None:
        assert not any("stage_seconds" in name for name in await figures(gateway))
        await gateway.post(PATH, ASKED)
        await gateway.events(PATH, {**ASKED, "n": 2})
        told = await figures(gateway)
        assert told[f"swarm:requests_total/{PATH}/ok"] == 2
        assert told["swarm:request_success_total/length"] == 3
        assert told["swarm:generation_tokens_total"] == 15
        assert told["swarm:prompt_tokens_total"] == 3 * len(chat_text(TURNS))
        assert told["swarm:time_to_first_token_seconds_count"] == 2
        assert told["swarm:e2e_request_latency_seconds_count"] == 2
        assert told["swarm:inter_token_latency_seconds_count"] == 15
        assert abs(told["swarm:stage_seconds_total/1/compute"] - 15 * 0.002) < 1e-9
        assert told["swarm:num_requests_running"] == told["swarm:num_requests_waiting"] == 0
        assert not any(stage.peer[-8:] in str(told) for stage in gateway.stages)

    with_gateway(story)


def test_failures_and_refusals_are_counted_as_such() -> None:
    narrow = replace(SETTINGS, most_running=1, most_waiting=0, timeout_seconds=0.1)

    def silent(stage: ScriptedStage, peer: str, message: Message) -> bool:
        return isinstance(message, Open)

    async def story(gateway: Gateway) -> None:
        gateway.stages[0].hook = silent
        assert (await gateway.post(PATH, ASKED)).status_code >= 500
        assert (await gateway.post(PATH, {**ASKED, "n": 2})).status_code == 429
        told = await figures(gateway)
        assert told[f"swarm:requests_total/{PATH}/error"] == 2
        assert told["swarm:admission_rejections_total"] == 1
        assert "swarm:request_success_total/length" not in told

    with_gateway(story, narrow)
