"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API, as Claude Code needs it."""

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from client.gateway.answering.answer_response import AnswerResponse, Desk
from client.gateway.answering.preparing import Calls, Wish, model_named, requests_for
from client.gateway.answering.readers import reader_for
from client.gateway.api.chat_messages import call_turn, system_turn
from client.gateway.api.checked_body import CheckedBody, plain_text
from client.gateway.api.messages_writer import MessagesWriter
from client.gateway.http.api_error import bad_request
from client.request import Options
from client.text.tool_prompt import Tools

THOUGHTS = frozenset({"thinking", "redacted_thinking"})  # which the model need not read again


class Block(CheckedBody):
    """One part of a message; of every kind, since kinds have their own fields."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations", "caller"})
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str = ""
    content: "str | list[Block]" = ""
    is_error: bool = False
    source: dict[str, Any] = Field(default_factory=dict)

    def plain(self) -> str:
        """The text of a block, or of those in it; raises ApiError if it is no text."""
        if self.type == "text":
            return self.text
        if self.type == "tool_result":
            return plain_text(self.content)
        message = f"A message has a block of type {self.type!r:.40}; only text is read here."
        raise bad_request(message, "messages", "unsupported_content")


class Message(CheckedBody):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def turns(self) -> Iterator[dict[str, Any]]:
        """What a template reads: results of tools as turns of their own; raises ApiError."""
        blocks = [] if isinstance(self.content, str) else self.content
        for block in blocks:
            if block.type == "tool_result":
                result = {"content": block.plain(), "tool_call_id": block.tool_use_id}
                yield {"role": "tool", **result}
        rest = [block for block in blocks if block.type not in {"tool_result", *THOUGHTS}]
        text = plain_text([block for block in rest if block.type != "tool_use"])
        text = self.content if isinstance(self.content, str) else text
        calls = [call_turn(b.id, b.name, b.input) for b in rest if b.type == "tool_use"]
        if text or calls or not blocks:
            turn = {"role": self.role, "content": text}
            yield turn | ({"tool_calls": calls} if calls else {})


class MessagesTool(CheckedBody):
    """A tool of the client's own."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("allowed_callers", "cache_control", "defer_loading", "eager_input_streaming"),
            *("input_examples", "strict"),
        }
    )
    type: Literal["custom"] = "custom"
    name: str = Field(min_length=1)
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=dict)

    def as_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        told = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**told, "parameters": self.input_schema}}


class ToolChoice(CheckedBody):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str = ""
    disable_parallel_tool_use: bool = False

    def calls(self) -> Calls:
        """Which calls an answer may have."""
        must = self.type in ("any", "tool")
        return Calls(must, self.name, not self.disable_parallel_tool_use)


class Thinking(CheckedBody):
    """Whether thoughts are told."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"budget_tokens", "display"})
    type: Literal["enabled", "disabled", "adaptive"] = "disabled"


class OutputConfig(CheckedBody):
    """How an answer is to be; any effort is the same here."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"effort"})
    format: dict[str, Any] | None = None


class CountRequest(CheckedBody):
    """What the tokens of a request are counted of."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("betas", "cache_control", "context_management", "inference_geo", "metadata"),
            *("diagnostics", "service_tier", "speed", "user_profile_id", "workspace_id"),
        }
    )
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: str | list[Block] = ""
    tools: list[MessagesTool] = Field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking = Thinking()
    output_config: OutputConfig = OutputConfig()

    def turns(self) -> list[dict[str, Any]]:
        """What a template reads; raises ApiError."""
        first = system_turn([plain_text(self.system)])
        return [*first, *(turn for message in self.messages for turn in message.turns())]

    def told_tools(self) -> Tools:
        """The tools that the model hears of."""
        is_told = self.tool_choice.type != "none"
        return [tool.as_template() for tool in self.tools] if is_told else []


class MessagesRequest(CountRequest):
    """A chat to go on with."""

    max_tokens: int
    stream: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_sequences: list[str] = Field(default_factory=list)

    def wish(self) -> Wish:
        """The same as a wish; raises ApiError."""
        options = Options(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
        )
        if self.output_config.format is not None:
            options["response_format"] = self.output_config.format
        tools, calls = self.told_tools(), self.tool_choice.calls()
        return Wish(None, self.turns(), options, self.max_tokens, tools=tools, calls=calls)


def message_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def create(body: MessagesRequest) -> Response:
        model, wish = await model_named(desk, body.model), body.wish()
        requests = await requests_for(desk, wish)
        reader = await reader_for(desk, wish, requests[0])
        tokenizer = (await desk.client.model()).tokenizer
        thinks = body.thinking.type != "disabled"
        writer = MessagesWriter(model, requests[0], tokenizer, thinks=thinks)
        return AnswerResponse(desk, requests, writer, is_streamed=body.stream, make_reader=reader)

    @router.post("/v1/messages/count_tokens")
    async def count(body: CountRequest) -> dict[str, int]:
        await model_named(desk, body.model)
        local = await desk.client.model()
        ids = await asyncio.to_thread(local.ids_of, None, body.turns(), body.told_tools())
        return {"input_tokens": len(ids)}

    return router


Block.model_rebuild()
