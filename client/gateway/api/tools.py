"""Tools as OpenAI's clients name them, and which of them a model may or must call."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from client.gateway.answering.preparing import Calls
from client.gateway.api.checked_body import CheckedBody, unsupported
from client.text.tool_prompt import Tools


class FunctionTool(CheckedBody):
    """A function that a model may call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"strict"})
    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)

    def as_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        return {"type": "function", "function": self.model_dump()}


class ChatTool(CheckedBody):
    """A tool of a chat."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    type: Literal["function"] = "function"
    function: FunctionTool


class ToolBody(CheckedBody):
    """A body that may name tools."""

    tools: list[ChatTool] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True

    def told_tools(self) -> Tools:
        """The tools that the model hears of."""
        if self.tool_choice == "none":
            return ()
        return [tool.function.as_template() for tool in self.tools]

    def calls(self) -> Calls:
        """Which calls an answer may have; raises ApiError."""
        return calls_of(self.tool_choice, are_parallel=self.parallel_tool_calls)


def calls_of(choice: str | dict[str, Any], *, are_parallel: bool) -> Calls:
    """What a `tool_choice` of either of OpenAI's APIs means; raises ApiError."""
    match choice:
        case "auto" | "none":
            return Calls(are_parallel=are_parallel)
        case "required":
            return Calls(must=True, are_parallel=are_parallel)
        case {"type": "function", "function": {"name": str() as name}}:
            return Calls(must=True, name=name)
        case {"type": "function", "name": str() as name}:
            return Calls(must=True, name=name)
    raise unsupported("tool_choice")
