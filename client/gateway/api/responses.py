"""`/v1/responses`: OpenAI's newer API, as Codex needs it."""

from collections.abc import Iterator
from typing import Any, ClassVar

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from client.gateway.answering.answer_response import AnswerResponse, Desk
from client.gateway.answering.preparing import Wish, model_named, requests_for
from client.gateway.answering.readers import reader_for
from client.gateway.api.chat_messages import SYSTEM, ContentPart, call_turn, system_turn
from client.gateway.api.checked_body import CheckedBody, plain_text, refuse_all
from client.gateway.api.responses_writer import ResponsesWriter
from client.gateway.api.tools import calls_of
from client.gateway.http.api_error import bad_request
from client.request import Options
from client.text.tool_prompt import Tools

# Tools that only OpenAI's own servers run, or that need a grammar: clients name them to everybody.
SKIPPED_TOOLS = frozenset(
    {
        *("apply_patch", "code_interpreter", "custom", "file_search", "image_generation"),
        *("local_shell", "namespace", "shell", "tool_search", "web_search", "web_search_preview"),
    }
)
SKIPPED_ITEMS = frozenset({"reasoning", "web_search_call", "item_reference"})
Turn = dict[str, Any]


class Item(CheckedBody):
    """One item of what was said so far; of every kind, since kinds have their own fields."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"action", "encrypted_content", "id", "internal_chat_message_metadata_passthrough"}
        | {"namespace", "phase", "status", "summary"}
    )
    type: str = "message"
    role: str = "user"
    content: str | list[ContentPart] = ""
    name: str = ""
    arguments: str = ""
    call_id: str = ""
    output: str | list[ContentPart] = ""

    def turn(self) -> Turn:
        """What a template reads; raises ApiError."""
        match self.type:
            case "message":
                role = "system" if self.role in SYSTEM else self.role
                return {"role": role, "content": plain_text(self.content)}
            case "function_call":
                call = call_turn(self.call_id, self.name, self.arguments)
                return {"role": "assistant", "content": "", "tool_calls": [call]}
            case "function_call_output":
                output = {"content": plain_text(self.output), "tool_call_id": self.call_id}
                return {"role": "tool", **output}
        raise bad_request(f"An item of type {self.type!r:.40} is not read here.", "input")


class ResponseTool(CheckedBody):
    """A function that a model may call, or what only others have."""

    model_config = CheckedBody.model_config | {"extra": "allow"}
    type: str
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)

    def as_template(self) -> dict[str, Any]:
        """The tool as chat templates read it; raises ApiError."""
        if self.type != "function" or not self.name:
            message = f"A tool of type {self.type!r:.40} is not supported here."
            raise bad_request(message, "tools", "unsupported_tool")
        told = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**told, "parameters": self.parameters}}


class TextForm(CheckedBody):
    """What the text of an answer looks like."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"verbosity"})
    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})


class ResponseRequest(CheckedBody):
    """A conversation to go on with; nothing of it is kept here."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("client_metadata", "include", "metadata", "prompt_cache_key", "reasoning"),
            *("prompt_cache_retention", "safety_identifier", "service_tier", "store"),
            *("stream_options", "user"),
        }
    )
    model: str | None = None
    input: str | list[Item] = ""
    instructions: str = ""
    max_output_tokens: int | None = None
    stream: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    tools: list[ResponseTool] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextForm = TextForm()
    truncation: str = "disabled"
    background: bool = False

    def turns(self) -> list[Turn]:
        """What a template reads; raises ApiError."""
        items = [Item(content=self.input)] if isinstance(self.input, str) else self.input
        turns = [item.turn() for item in items if item.type not in SKIPPED_ITEMS]
        at = next((n for n, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        first = system_turn([self.instructions, *(turn["content"] for turn in turns[:at])])
        rest = list(_joined(turns[at:]))
        return [*first, *(rest or [{"role": "user", "content": ""}])]  # Codex probes with nothing

    def told_tools(self) -> Tools:
        """The tools that the model hears of; raises ApiError."""
        told = [tool.as_template() for tool in self.tools if tool.type not in SKIPPED_TOOLS]
        return [] if self.tool_choice == "none" else told

    def wish(self) -> Wish:
        """The same as a wish; raises ApiError."""
        refuse_all(self, truncation="disabled", background=False)
        options = Options(
            temperature=self.temperature, top_p=self.top_p, response_format=self.text.format
        )
        tools, most = self.told_tools(), self.max_output_tokens
        calls = calls_of(self.tool_choice, are_parallel=self.parallel_tool_calls)
        return Wish(None, self.turns(), options, most, tools=tools, calls=calls)


def _joined(turns: list[Turn]) -> Iterator[Turn]:
    """Calls belong to the turn in which they were made, with the text before them."""
    last: Turn | None = None
    for turn in turns:
        if last is not None and last["role"] == "assistant" and "tool_calls" in turn:
            last = {**last, "tool_calls": [*last.get("tool_calls", []), *turn["tool_calls"]]}
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last


def response_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def create(body: ResponseRequest) -> Response:
        model, wish = await model_named(desk, body.model), body.wish()
        requests = await requests_for(desk, wish)
        reader = await reader_for(desk, wish, requests[0])
        writer = ResponsesWriter(model, _echoed(body))
        return AnswerResponse(desk, requests, writer, is_streamed=body.stream, make_reader=reader)

    return router


def _echoed(body: ResponseRequest) -> dict[str, Any]:
    """What a response says of its request."""
    return {
        "instructions": body.instructions or None,
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [tool.model_dump() for tool in body.tools if tool.type == "function"],
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
