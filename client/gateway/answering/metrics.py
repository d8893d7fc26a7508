"""Metrics: what a gateway counts for Prometheus, in vLLM's words under our own prefix."""

from collections.abc import Sequence
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from client.gateway.answering.parts import Finished
from client.gateway.http.admission import Admission
from client.gateway.http.api_error import ApiError
from client.generation import Generation

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
LONG_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
OK, ERROR, CANCELLED = "ok", "error", "cancelled"


class Metrics:
    """Figures of one gateway; none has a peer's name in it, since peers come and go."""

    def __init__(self, admission: Admission) -> None:
        made = self._registry = CollectorRegistry()
        running = Gauge("swarm:num_requests_running", "Generations under way.", registry=made)
        running.set_function(lambda: admission.running)
        waiting = Gauge("swarm:num_requests_waiting", "Generations in line.", registry=made)
        waiting.set_function(lambda: admission.waiting)
        self._requests = Counter(
            "swarm:requests", "Requests for an answer.", ["path", "outcome"], registry=made
        )
        self._rejections = Counter(
            "swarm:admission_rejections", "Requests sent away, the line being full.", registry=made
        )
        self._finished = Counter(
            "swarm:request_success", "Answers.", ["finished_reason"], registry=made
        )
        self._first = Histogram(
            "swarm:time_to_first_token_seconds",
            "From a request to its first token.",
            registry=made,
            buckets=SECONDS,
        )
        self._between = Histogram(
            "swarm:inter_token_latency_seconds",
            "Between two pieces of an answer.",
            registry=made,
            buckets=SECONDS,
        )
        self._whole = Histogram(
            "swarm:e2e_request_latency_seconds",
            "From a request to its end.",
            registry=made,
            buckets=LONG_SECONDS,
        )
        self._tokens = TokenCounters(made)

    def rejected(self, error: ApiError) -> None:
        """A request was refused before anybody was asked."""
        if error.status == 429:
            self._rejections.inc()

    def between(self, seconds: float) -> None:
        """A piece came, so long after the one before."""
        self._between.observe(seconds)

    def ended(self, path: str, outcome: str, choices: Sequence[Finished], began: float) -> None:
        """A request is over."""
        self._requests.labels(path, outcome).inc()
        if outcome == OK:
            self._whole.observe(perf_counter() - began)
            self._first.observe(choices[0].generation.ttft_seconds)
        for choice in choices:
            self._finished.labels(choice.generation.finish_reason).inc()
            self._tokens.add(choice.generation)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self._registry)


class TokenCounters:
    """What whole answers were made of, and where their time went."""

    def __init__(self, made: CollectorRegistry) -> None:
        counted = {
            "prompt_tokens": "Tokens of prompts.",
            "generation_tokens": "Tokens of answers.",
            "prefix_cache_queries": "Tokens of prompts that stages might have had already.",
            "prefix_cache_hits": "Tokens of prompts that every stage had already.",
            "spec_decode_num_draft_tokens": "Tokens that the last stage guessed ahead.",
            "spec_decode_num_accepted_tokens": "Guessed tokens that came true.",
            "replays": "Times that an answer went on over another route.",
        }
        self._counters = {
            name: Counter(f"swarm:{name}", what, registry=made) for name, what in counted.items()
        }
        self._stages = Counter(
            "swarm:stage_seconds",
            "Where tokens spent their time, by the place of the stage.",
            ["hop", "part"],
            registry=made,
        )

    def add(self, generation: Generation) -> None:
        """Count one answer."""
        told = {
            "prompt_tokens": generation.prompt_tokens,
            "generation_tokens": len(generation.token_ids),
            "prefix_cache_queries": generation.prompt_tokens,
            "prefix_cache_hits": generation.cached_tokens,
            "spec_decode_num_draft_tokens": generation.drafted,
            "spec_decode_num_accepted_tokens": generation.accepted,
            "replays": generation.replays,
        }
        for name, value in told.items():
            self._counters[name].inc(value)
        for hop, stage in enumerate(generation.timings):
            self._stages.labels(str(hop), "queue").inc(stage.queue_seconds)
            self._stages.labels(str(hop), "compute").inc(stage.compute_seconds)
            self._stages.labels(str(hop), "network").inc(stage.network_seconds)
