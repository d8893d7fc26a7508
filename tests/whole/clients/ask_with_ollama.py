"""Ollama's own client against a gateway: `python ask_with_ollama.py URL MODEL`."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import ollama

URL, MODEL = sys.argv[1:]
CHAT = [{"role": "user", "content": "Once upon a time"}]
OPTIONS = {"num_predict": 12, "temperature": 0, "num_ctx": 2048}
client: Any = ollama.Client(host=URL)


def chats() -> None:
    """A chat, whole and streamed, and a prompt."""
    whole = client.chat(model=MODEL, messages=CHAT, options=OPTIONS)
    assert whole.done_reason in ("length", "stop")
    assert whole.eval_count > 0
    parts = list(client.chat(model=MODEL, messages=CHAT, options=OPTIONS, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    prompted = client.generate(model=MODEL, prompt="Once upon a time", options=OPTIONS)
    assert prompted.response == whole.message.content


def errors() -> None:
    """What is refused says why."""
    ask = partial(client.chat, model="other", messages=CHAT)
    assert "no model 'other'" in refusal(ollama.ResponseError, ask)


def refusal(kind: type[Exception], ask: Callable[[], object]) -> str:
    """What an error of this kind says; nothing if there is none."""
    try:
        ask()
    except kind as error:
        return str(error)
    return ""


if __name__ == "__main__":
    assert MODEL in [model.model for model in client.list().models]
    chats()
    errors()
    print("ollama: ok")
