"""HostedClient: a client in the process of a node, on that node's own board and channel.

It speaks in ids: who asks through a node of his has the model's tokenizer beside him, and the node
needs none.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import astuple
from typing import Any

from client.request import Request
from client.routing.live_plan import LivePlan
from client.routing.route import Place
from client.routing.route_finder import RouteFinder
from client.session.inference_session import Session
from client.session.session_router import SessionRouter, Sessions, Stages
from swarm.dht.board import Board
from swarm.errors import BadInput, BadModel, PromptTooLong
from swarm.model_spec import ModelSpec
from swarm.p2p.channel import Channel
from swarm.records import Advert, record_to_list
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_ids import ids_of_bytes

ID_BYTES = 4


class HostedClient:
    """Answers questions of the node's owner; `plan` is the document that the node follows."""

    def __init__(
        self,
        board: Board,
        channel: Channel,
        spec: ModelSpec,
        stages: Stages,
        plan: Callable[[], bytes],
    ) -> None:
        self._spec, self._plan = spec, plan
        finder = RouteFinder(board, spec, places=self._places)
        self._sessions = Sessions(channel, finder, SessionRouter(channel, stages))

    async def generate(
        self, words: Mapping[str, Any], enough: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        """New ids as they come, and at last what came of it; raises SwarmError.

        Ends early once `enough` is set, and frees every stage in every case.
        """
        session = self._sessions.begin(_request_of(words, self._spec))
        try:
            async with aclosing(session.tokens()) as tokens:
                async for token in tokens:
                    yield {"ids": [token]}
                    if enough.is_set():
                        session.stop()
            yield {"end": _end_of(session, self._spec)}
        finally:
            self._sessions.end(session)

    async def _places(self) -> frozenset[Place]:
        with suppress(ValueError):  # a plan of another version
            if document := self._plan():
                return LivePlan.of_bytes(document).places()
        return frozenset()


def _request_of(words: Mapping[str, Any], spec: ModelSpec) -> Request:
    """A request as it comes through the socket; raises BadInput."""
    if words.get("model") != spec.digest:
        raise BadModel("The node serves other files than yours.", "Name the model of this swarm.")
    data, options, seconds = words.get("ids"), words.get("sampling"), words.get("timeout")
    if not isinstance(options, dict) or not isinstance(data, bytes) or len(data) % ID_BYTES:
        raise BadInput("This is no question.", "Use the same version of `swarm` as the node.")
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise BadInput("The time for an answer must be above zero.", option="timeout_seconds")
    sampling, ids = Sampling.from_map(options), ids_of_bytes(data)
    if len(ids) + sampling.max_tokens > spec.context:
        cause = f"Prompt and answer are longer than the context of {spec.context} tokens."
        raise PromptTooLong(cause, "Shorten the prompt or ask for fewer tokens.")
    if not ids or not all(0 <= token < spec.vocab for token in ids):
        raise BadInput("The prompt is empty, or has ids beyond the model's.", "Check its ids.")
    return Request(tuple(ids), sampling, seconds)


def _end_of(session: Session, spec: ModelSpec) -> dict[str, Any]:
    """What is to be told of an answer beside its ids."""
    route = session.last_route
    stages = Advert(spec.digest, list(route.stages) if route else [], 0)
    return {
        "finish": session.transcript.finish,
        "route": record_to_list(stages),
        "timings": [list(astuple(timing)) for timing in session.stage_times.timings()],
        "replays": session.replays,
        "drafted": session.drafted,
        "accepted": session.accepted,
        "cached_tokens": session.cached_tokens,
    }
