"""Tools in a chat whose template knows none: told in words, and called as Hermes models do."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Tools = Sequence[Mapping[str, Any]]  # {"type": "function", "function": {"name", "parameters"}}
TOLD = """You may call tools. Their signatures are:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments within XML tags:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def with_tools_told(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[Mapping[str, Any]]:
    """The chat with its tools in the system message, calls and their results in plain words."""
    told = TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    turns = list(_plain(messages))
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0]['content']}\n\n{told}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]


def _plain(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Turns of three roles, user and assistant in turn: most templates know nothing else."""
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        yield _called(message) if message.get("tool_calls") else message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _called(message: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = [_written(call["function"]) for call in message["tool_calls"]]
    return {"role": "assistant", "content": "\n".join(filter(None, [message["content"], *calls]))}


def _written(function: Mapping[str, Any]) -> str:
    named = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(named, ensure_ascii=False)}\n</tool_call>"
