"""LangChain's client of OpenAI's API against a gateway: `ask_with_langchain.py URL MODEL`."""

import sys
from typing import Any

from langchain_openai import ChatOpenAI

URL, MODEL = sys.argv[1:]
FORM = {
    "title": "output",
    "type": "object",
    "properties": {"at": {"enum": ["cat", "dog"]}},
    "required": ["at"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # a weak model would write nothing but blanks
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": FORM}}


def model(**more: Any) -> Any:
    """A model as a script makes it."""
    given = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": "none", "temperature": 0, **more}
    return ChatOpenAI(**given)


if __name__ == "__main__":
    short: Any = model(max_tokens=12)
    whole = short.invoke("Once upon a time")
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in short.stream("Once upon a time")) == whole.content
    called = model(max_tokens=100).bind_tools([TOOL], tool_choice="look").invoke("Look.")
    assert called.tool_calls[0]["args"]["at"] in ("cat", "dog")
    formed = model(max_tokens=100).with_structured_output(FORM, method="json_schema")
    assert formed.invoke("Look.")["at"] in ("cat", "dog")
    print("langchain: ok")
