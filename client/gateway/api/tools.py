"""Tools as OpenAI's clients name them, and which of them a model may or must call."""

from typing import Any, ClassVar, Literal

from pydantic import Field

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
        """The tools that the model hears of; raises ApiError."""
        if self.tool_choice not in ("auto", "none"):
            raise unsupported("tool_choice")
        if self.tool_choice == "none":
            return ()
        return [tool.function.as_template() for tool in self.tools]

    @property
    def most_calls(self) -> int:
        """How many calls an answer may have; -1 is any number."""
        return -1 if self.parallel_tool_calls else 1
