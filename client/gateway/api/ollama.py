"""Ollama's API, as far as its clients need it to chat: tags, show, chat, generate, version."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from client.gateway.answering.answer_response import AnswerResponse, Desk
from client.gateway.answering.figures import timings
from client.gateway.answering.parts import Finished, Part, Reasoning, Text, ToolCall
from client.gateway.answering.preparing import (
    Wish,
    context_of,
    model_named,
    requests_for,
    served_names,
)
from client.gateway.answering.readers import reader_for
from client.gateway.api.chat_messages import SYSTEM, call_turn, system_turn
from client.gateway.api.checked_body import SEEDS, CheckedBody, refuse_all
from client.gateway.api.tools import ToolBody
from client.gateway.http.api_error import ApiError, bad_request, ollama_body
from client.gateway.http.json_response import JsonResponse, dump
from client.request import Options

SPOKEN_VERSION = "0.12.0"  # of Ollama's API: some clients ask for no older one
NANOSECONDS = 1_000_000  # a millisecond
LATEST = ":latest"


class OllamaOptions(CheckedBody):
    """How tokens are chosen, with Ollama's defaults; what only its engine needs is passed over."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa"),
            *("low_vram", "f16_kv", "use_mmap", "use_mlock", "vocab_only"),
        }
    )
    num_predict: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.1
    repeat_last_n: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    typical_p: float = 1.0
    tfs_z: float = 1.0
    seed: int | None = None
    stop: str | list[str] = Field(default_factory=list)

    def sampling(self) -> Options:
        """The same for `Client.generate`; raises ApiError on what is not done here."""
        refuse_all(self, repeat_last_n=-1, mirostat=0, typical_p=1.0, tfs_z=1.0)
        return Options(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed in (None, -1) else self.seed & SEEDS,
            stop=self.stop,
        )

    def most(self) -> int | None:
        """The most tokens of an answer; below zero: as many as there is room for."""
        return None if self.num_predict < 0 else self.num_predict


class OllamaBody(CheckedBody):
    """What a chat and a prompt have in common."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"keep_alive"})
    model: str
    stream: bool = True
    format: str | dict[str, Any] = ""
    options: OllamaOptions = OllamaOptions()
    think: bool | str = True

    def name(self) -> str:
        """The model's name, without the tag that Ollama's clients add."""
        return self.model.removesuffix(LATEST)

    def formatted(self) -> Options:
        """What the answer must look like: JSON, or a schema; raises ApiError."""
        if self.format == "":
            return Options()
        if isinstance(self.format, str) and self.format != "json":
            raise bad_request(f"format is {self.format!r:.40}; it must be json or a schema.")
        wanted = {"type": "json_object"}
        is_schema = isinstance(self.format, dict)
        schema = {"type": "json_schema", "schema": self.format} if is_schema else wanted
        return Options(response_format=schema)


class OllamaCall(CheckedBody):
    """A function that was called."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"index", "description"})
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCalled(CheckedBody):
    """A call in an earlier answer."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"type"})
    id: str = ""
    function: OllamaCall


class OllamaMessage(CheckedBody):
    """One message of a chat."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"thinking"})
    role: str
    content: str = ""
    images: list[str] = Field(default_factory=list)
    tool_calls: list[OllamaCalled] = Field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""

    def turn(self) -> dict[str, Any]:
        """The message as a chat template reads it; raises ApiError."""
        refuse_all(self, images=[])
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        made |= {"name": self.tool_name} if self.tool_name else {}
        called = [call_turn(c.id, c.function.name, c.function.arguments) for c in self.tool_calls]
        return made | ({"tool_calls": called} if called else {})


class OllamaChat(OllamaBody, ToolBody):
    """A chat to go on with; without messages a model is only to be loaded."""

    messages: list[OllamaMessage] = Field(default_factory=list)

    def wish(self) -> Wish:
        """The same as a wish; raises ApiError."""
        first = [m.content for m in self.messages[:1] if m.role in SYSTEM]
        rest = [message.turn() for message in self.messages[len(first) :]]
        turns, options = [*system_turn(first), *rest], self.options
        sampling = options.sampling() | self.formatted()
        return Wish(None, turns, sampling, options.most(), tools=self.told_tools())


class OllamaGenerate(OllamaBody):
    """A prompt to answer, as the only message of a chat if the model knows chats."""

    prompt: str = ""
    system: str = ""
    suffix: str = ""
    template: str = ""
    raw: bool = False
    context: list[int] = Field(default_factory=list)
    images: list[str] = Field(default_factory=list)

    def wish(self, *, is_chat: bool) -> Wish:
        """The same as a wish; raises ApiError."""
        refuse_all(self, suffix="", template="", context=[], images=[])
        options, most = self.options.sampling() | self.formatted(), self.options.most()
        if self.raw or not is_chat:
            return Wish(self.system + self.prompt, None, options, most)
        asked = {"role": "user", "content": self.prompt}
        return Wish(None, [*system_turn([self.system]), asked], options, most)


class OllamaWriter:
    """One answer as Ollama's clients read it: a JSON object on each line."""

    media_type = "application/x-ndjson"

    def __init__(self, model: str, *, is_chat: bool, thinks: bool) -> None:
        self._model, self._is_chat, self._thinks = model, is_chat, thinks
        self._started = time.monotonic()

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def part(self, index: int, part: Part) -> bytes:
        """A piece of text or of thought, or a whole call."""
        if isinstance(part, Text):
            return self._line({"done": False}, part.text)
        if isinstance(part, ToolCall):
            return self._line({"done": False}, "", calls=[_called(part)])
        if isinstance(part, Reasoning) and self._thinks:
            return self._line({"done": False}, "", thinking=part.text)
        return b""

    def end(self, index: int, finished: Finished) -> bytes:
        """Nothing: there is one choice."""
        return b""

    def close(self, choices: Sequence[Finished]) -> bytes:
        """How it ended, and what it took."""
        return self._line(self._figures(choices[0]), "")

    def fail(self, error: ApiError) -> bytes:
        """An error that Ollama's clients raise."""
        return dump(ollama_body(error)) + b"\n"

    def comment(self, text: str) -> bytes:
        """Nothing: there are no comments between lines of JSON."""
        return b""

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""
        finished = choices[0]
        more: dict[str, Any] = {"calls": [_called(call) for call in finished.calls]}
        more |= {"thinking": finished.reasoning} if self._thinks else {}
        return self._body(self._figures(finished), finished.text, **more)

    def _line(self, facts: dict[str, Any], text: str, **more: Any) -> bytes:
        return dump(self._body(facts, text, **more)) + b"\n"

    def _body(
        self, facts: dict[str, Any], text: str, *, calls: Sequence[Any] = (), thinking: str = ""
    ) -> dict[str, Any]:
        told: dict[str, Any] = {"thinking": thinking} if thinking else {}
        told |= {"tool_calls": list(calls)} if calls else {}
        message = {"message": {"role": "assistant", "content": text, **told}}
        said = message if self._is_chat else {"response": text, **told}
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self._model, "created_at": now, **said, **facts}

    def _figures(self, finished: Finished) -> dict[str, Any]:
        generation, took = finished.generation, timings(finished.generation)
        return {
            "done": True,
            "done_reason": generation.finish_reason,
            "total_duration": int((time.monotonic() - self._started) * 1000 * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": generation.prompt_tokens,
            "prompt_eval_duration": int(took["prompt_ms"] * NANOSECONDS),
            "eval_count": len(generation.token_ids),
            "eval_duration": int(took["predicted_ms"] * NANOSECONDS),
        }


def _called(call: ToolCall) -> dict[str, Any]:
    """A call, its arguments as an object if they are one."""
    return {"function": call_turn(call.id, call.name, call.arguments)["function"]}


async def _answer(desk: Desk, body: OllamaBody, wish: Wish, *, is_chat: bool) -> Response:
    requests = await requests_for(desk, wish)
    reader = await reader_for(desk, wish, requests[0])
    writer = OllamaWriter(body.model, is_chat=is_chat, thinks=bool(body.think))
    return AnswerResponse(desk, requests, writer, is_streamed=body.stream, make_reader=reader)


def _loaded(body: OllamaBody, *, is_chat: bool) -> Response:
    """The answer to who wants a model to be loaded: it is."""
    said = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    facts = {"model": body.model, "created_at": now, "done": True, "done_reason": "load"}
    return JsonResponse(facts | said)


def ollama_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()
    began = datetime.now(UTC).isoformat().replace("+00:00", "Z")

    async def details() -> dict[str, Any]:
        family = (await desk.client.model()).spec.architecture
        facts = {"parent_model": "", "format": "safetensors", "family": family}
        return {**facts, "families": [family], "parameter_size": "", "quantization_level": ""}

    @router.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": SPOKEN_VERSION}

    @router.get("/api/tags")
    async def tags() -> dict[str, Any]:
        digest, known = (await desk.client.model()).spec.digest, await details()
        facts = {"modified_at": began, "size": 0, "digest": digest, "details": known}
        names = await served_names(desk)
        return {"models": [{"name": name, "model": name, **facts} for name in names]}

    @router.post("/api/show")
    async def show(body: OllamaBody) -> dict[str, Any]:
        await model_named(desk, body.name())
        family = (await desk.client.model()).spec.architecture
        info = {"general.architecture": family, f"{family}.context_length": await context_of(desk)}
        capable = ["completion", "tools"]
        return {"details": await details(), "model_info": info, "capabilities": capable}

    @router.post("/api/chat")
    async def chat(body: OllamaChat) -> Response:
        await model_named(desk, body.name())
        if not body.messages:
            return _loaded(body, is_chat=True)
        return await _answer(desk, body, body.wish(), is_chat=True)

    @router.post("/api/generate")
    async def generate(body: OllamaGenerate) -> Response:
        await model_named(desk, body.name())
        if not body.prompt:
            return _loaded(body, is_chat=False)
        has_template = bool((await desk.client.model()).tokenizer.template())
        return await _answer(desk, body, body.wish(is_chat=has_template), is_chat=False)

    return router
