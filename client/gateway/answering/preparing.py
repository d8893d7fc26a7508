"""Requests of a swarm's client made from what an API was asked, checked before any peer hears."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.gateway.answering.answer_response import Desk
from client.gateway.http.api_error import ApiError, bad_request
from client.request import Options, Question, Request
from client.text.tokenizer import Messages
from client.text.tool_prompt import Tools
from swarm.errors import PromptTooLong

MOST_CHOICES = 8
SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class Wish:
    """A prompt or a chat, how to go on with it, and how often."""

    prompt: str | Sequence[int] | None
    messages: Messages | None
    options: Options
    max_tokens: int | None  # None: as many as there is room for, up to the gateway's own bound
    count: int = 1
    tools: Tools = ()


async def served_names(desk: Desk) -> tuple[str, ...]:
    """What clients may call the model; the first is shown."""
    return desk.settings.names or ((await desk.client.model()).spec.name,)


async def context_of(desk: Desk) -> int:
    """Tokens that a prompt and its answer may have together."""
    context = (await desk.client.model()).spec.context
    return min(context, desk.settings.max_model_len or context)


async def model_named(desk: Desk, name: str | None) -> str:
    """The name of the model that a request means; raises ApiError if there is none such."""
    names = await served_names(desk)
    if name is not None and name not in names:
        raise ApiError(
            404,
            f"There is no model {name!r:.200} here. Served: {', '.join(names)}.",
            param="model",
            code="model_not_found",
        )
    return name or names[0]


async def requests_for(desk: Desk, wish: Wish) -> list[Request]:
    """One request for each choice; raises SwarmError, ApiError."""
    if not 1 <= wish.count <= MOST_CHOICES:
        raise bad_request(f"n is {wish.count}; it must be between 1 and {MOST_CHOICES}.", "n")
    if wish.max_tokens is not None and wish.max_tokens < 1:
        raise bad_request(f"max_tokens is {wish.max_tokens}; it must be at least 1.", "max_tokens")
    least = Options(**{**wish.options, "max_tokens": 1})
    seconds = desk.settings.timeout_seconds
    question = Question(wish.prompt, wish.messages, seconds, least, wish.tools)
    request = await desk.client.request(question)
    room = await context_of(desk) - len(request.ids)
    if room < 1:
        raise PromptTooLong(
            f"The prompt has {len(request.ids)} tokens, and the context is "
            f"{await context_of(desk)} tokens, the answer included.",
            "Shorten the prompt.",
        )
    tokens = min(wish.max_tokens or desk.settings.default_max_tokens, room)
    return [_choice(request, tokens, index) for index in range(wish.count)]


def _choice(request: Request, tokens: int, index: int) -> Request:
    """The request for one choice: its own seed, so that a replay repeats it and others differ."""
    sampling = request.sampling
    first = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
    seed = None if sampling.is_greedy else (first + index) % SEEDS
    return replace(request, sampling=replace(sampling, max_tokens=tokens, seed=seed))
