"""Anthropic's own client against a gateway: `python ask_with_anthropic.py URL MODEL`."""

import sys
from collections.abc import Callable
from typing import Any

import anthropic

URL, MODEL = sys.argv[1:]
CHAT = [{"role": "user", "content": "Once upon a time"}]
FORM = {"type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}, "required": ["at"]}
TOOL = {"name": "look", "input_schema": {**FORM, "additionalProperties": False}}
client: Any = anthropic.Anthropic(base_url=URL, auth_token="none", api_key=None)


def messages() -> None:
    """A chat, whole and streamed, and what it would count."""
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 12}
    asked |= {"extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    assert whole.stop_reason in ("max_tokens", "end_turn")
    counted = client.messages.count_tokens(model=MODEL, messages=CHAT)
    used = whole.usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    called = client.messages.create(
        **{**asked, "max_tokens": 100}, tools=[TOOL], tool_choice={"type": "any"}, system="Look."
    )
    assert called.stop_reason == "tool_use"
    assert called.content[0].input["at"] in ("cat", "dog")


def errors() -> None:
    """What is refused has its own class, and says why."""
    asked = {"model": "other", "messages": CHAT, "max_tokens": 2}
    said = refusal(anthropic.NotFoundError, lambda: client.messages.create(**asked))
    assert "no model 'other'" in said


def refusal(kind: type[Exception], ask: Callable[[], object]) -> str:
    """What an error of this kind says; nothing if there is none."""
    try:
        ask()
    except kind as error:
        return str(error)
    return ""


if __name__ == "__main__":
    messages()
    errors()
    print(f"anthropic {anthropic.__version__}: ok")
