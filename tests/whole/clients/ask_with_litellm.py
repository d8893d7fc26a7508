"""LiteLLM against a gateway: `python ask_with_litellm.py URL MODEL`."""

import sys
from typing import Any

import litellm

URL, MODEL = sys.argv[1:]
ASKED: dict[str, Any] = {
    "model": f"openai/{MODEL}",
    "messages": [{"role": "user", "content": "Once upon a time"}],
    "api_base": f"{URL}/v1",
    "api_key": "none",
    "max_tokens": 12,
    "temperature": 0,
}


def refusal(model: str) -> str:
    """What an error says for a model; nothing if there is none."""
    try:
        litellm.completion(**{**ASKED, "model": model})
    except litellm.NotFoundError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    whole: Any = litellm.completion(**ASKED)
    assert whole.usage.completion_tokens > 0
    chunks: Any = litellm.completion(**ASKED, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert "no model 'other'" in refusal("openai/other")
    print("litellm: ok")
