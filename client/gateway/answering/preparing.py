"""Requests of a swarm's client made from what an API was asked, checked before any peer hears."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.gateway.answering.answer_response import Desk
from client.gateway.http.api_error import ApiError, bad_request
from client.request import Options, Question, Request
from client.text.tokenizer import Messages
from client.text.tool_calls import CallFormat
from client.text.tool_grammar import call_grammar
from client.text.tool_prompt import Tools
from swarm.errors import PromptTooLong

MOST_CHOICES = 8
SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class Calls:
    """Which calls of tools an answer may have."""

    must: bool = False  # one at least, and nothing else
    name: str = ""  # of this tool alone, if it is named
    are_parallel: bool = True  # else the first one counts


@dataclass(frozen=True, slots=True)
class Wish:
    """A prompt or a chat, how to go on with it, and how often."""

    prompt: str | Sequence[int] | None
    messages: Messages | None
    options: Options
    max_tokens: int | None  # None: as many as there is room for, up to the gateway's own bound
    count: int = 1
    tools: Tools = ()
    calls: Calls = Calls()


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
    if wish.calls.must:
        least["structured_outputs"] = {"grammar": await _call_grammar(desk, wish)}
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


async def _call_grammar(desk: Desk, wish: Wish) -> str:
    """What lets through calls alone; raises ApiError if there is no such tool."""
    named = [tool for tool in wish.tools if wish.calls.name in ("", tool["function"]["name"])]
    if not named:
        told = f"named {wish.calls.name!r:.80}" if wish.calls.name else "to be called"
        raise bad_request(f"There is no tool {told}.", "tool_choice")
    format_ = CallFormat.of((await desk.client.model()).tokenizer.template()).enforced
    are_parallel = wish.calls.are_parallel and not wish.calls.name
    return call_grammar(named, format_, are_parallel=are_parallel)


def _choice(request: Request, tokens: int, index: int) -> Request:
    """The request for one choice: its own seed, so that a replay repeats it and others differ."""
    sampling = request.sampling
    first = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
    seed = None if sampling.is_greedy else (first + index) % SEEDS
    return replace(request, sampling=replace(sampling, max_tokens=tokens, seed=seed))
