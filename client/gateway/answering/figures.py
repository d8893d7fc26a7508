"""Figures: what an answer took and used, as fields and headers of the APIs."""

from collections.abc import Sequence
from typing import Any

from client.gateway.answering.parts import Finished
from client.generation import Generation
from client.routing.route import leader_of
from swarm.formatting import short_id
from swarm.records import StageAdvert


def usage(choices: Sequence[Finished]) -> dict[str, Any]:
    """Tokens used, in OpenAI's words; choices of one prompt share it."""
    generations = [choice.generation for choice in choices]
    prompt = max((each.prompt_tokens for each in generations), default=0)
    answer = sum(len(each.token_ids) for each in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(choices)},
    }


def cached_tokens(choices: Sequence[Finished]) -> int:
    """Tokens of the prompt that no stage had to compute for the first choice."""
    return choices[0].generation.cached_tokens if choices else 0


def timings(generation: Generation) -> dict[str, Any]:
    """Where the time went, in llama.cpp's words."""
    tokens, whole = len(generation.token_ids), _whole_seconds(generation)
    answer = max(whole - generation.ttft_seconds, 0.0)
    return {
        "cache_n": generation.cached_tokens,
        "prompt_n": generation.prompt_tokens - generation.cached_tokens,
        "prompt_ms": _milliseconds(generation.ttft_seconds),
        "predicted_n": tokens,
        "predicted_ms": _milliseconds(answer),
        "predicted_per_second": round((tokens - 1) / answer, 2) if answer > 0 else None,
    }


def route_headers(stages: Sequence[StageAdvert]) -> dict[str, str]:
    """Which layers who served, as far as a header can tell it."""
    if not stages:
        return {}
    hops = [f"{stage.start}-{stage.end - 1}@{short_id(leader_of(stage))}" for stage in stages]
    peers = {member.peer for stage in stages for member in stage.members}
    return {"x-swarm-route": ",".join(hops), "x-swarm-nodes": str(len(peers))}


def answer_headers(generation: Generation) -> dict[str, str]:
    """Route and times of a whole answer."""
    stages = generation.timings
    spent = {
        "ttft": generation.ttft_seconds,
        "queue": sum(stage.queue_seconds for stage in stages),
        "compute": sum(stage.compute_seconds for stage in stages),
        "network": sum(stage.network_seconds for stage in stages),
        "total": _whole_seconds(generation),
    }
    timed = ", ".join(f"{name};dur={_milliseconds(value)}" for name, value in spent.items())
    return {**route_headers(generation.route), "server-timing": timed}


def log_line(choices: Sequence[Finished]) -> str:
    """One answer in a few words, none of them its own."""
    generation = choices[0].generation
    peers = {member.peer for stage in generation.route for member in stage.members}
    tokens = sum(len(choice.generation.token_ids) for choice in choices)
    speed = f"{generation.tokens_per_second:.1f} tok/s via {len(peers)} peers"
    return f"{generation.prompt_tokens} tokens in, {tokens} out, {speed}"


def _whole_seconds(generation: Generation) -> float:
    speed = generation.tokens_per_second
    return len(generation.token_ids) / speed if speed > 0 else generation.ttft_seconds


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
