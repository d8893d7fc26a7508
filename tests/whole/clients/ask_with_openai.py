"""OpenAI's own client against a gateway: `python ask_with_openai.py URL MODEL`."""

import json
import sys
from collections.abc import Callable
from typing import Any

import openai

URL, MODEL = sys.argv[1:]
CHAT = [{"role": "user", "content": "Once upon a time"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["cat", "dog"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}
client: Any = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")


def chat() -> str:
    """A chat, whole: what the streams below must say, too."""
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2
    )
    (choice,) = answer.choices
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens == len(choice.logprobs.content)
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert answer.usage.prompt_tokens > 3
    return str(choice.message.content)


def stream(text: str) -> None:
    """The same, streamed, with its usage at the end."""
    told = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=CHAT, max_tokens=12, temperature=0, **told
        )
    )
    assert chunks[-1].usage.completion_tokens > 0
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(each.delta.content or "" for each in deltas) == text
    assert deltas[-1].finish_reason in ("length", "stop")


def helper_stream(text: str) -> None:
    """The client's helper, the strictest of its readers, which takes no answer that is cut off."""
    stop = text[len(text) // 2 :][:2]
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 12, "temperature": 0, "stop": stop}
    with client.chat.completions.stream(**asked) as events:
        for _ in events:
            pass
        (choice,) = events.get_final_completion().choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == text.partition(stop)[0]


def tools_and_schemas() -> None:
    """A call that must be made, one that need not, and an answer that follows a schema."""
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 100, "temperature": 0}
    (called,) = client.chat.completions.create(
        **asked, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    ).choices
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["at"] in ("cat", "dog")
    with client.chat.completions.stream(
        **asked, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}}
    ) as events:
        for _ in events:
            pass
        final = events.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    (free,) = client.chat.completions.create(**{**asked, "max_tokens": 4}, tools=[TOOL]).choices
    assert free.message.tool_calls is None
    shape = {**TOOL["function"]["parameters"], "x-guidance": {"whitespace_flexible": False}}
    schema = {"name": "output", "schema": shape}
    form = {"type": "json_schema", "json_schema": schema}
    (formed,) = client.chat.completions.create(**asked, response_format=form).choices
    assert json.loads(formed.message.content)["at"] in ("cat", "dog")


def several_choices() -> None:
    """Choices of one prompt, sampled: repeated with their seed."""
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 8, "n": 3, "seed": 7}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(texts) == 3


def completions() -> None:
    """The older API."""
    answer = client.completions.create(
        model=MODEL, prompt=["Once upon", "There was"], max_tokens=6, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = client.completions.create(
        model=MODEL, prompt="Once upon", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def responses() -> None:
    """The newer API, whole and streamed."""
    asked = {"model": MODEL, "input": "Once upon a time", "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.usage.output_tokens > 0
    events = list(client.responses.create(**asked, stream=True))
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.output_text == whole.output_text


def errors() -> None:
    """What is refused has its own class, and says why."""
    for ask, kind, says in (
        (lambda: chat_with(model="other"), openai.NotFoundError, "no model 'other'"),
        (lambda: chat_with(anything=1), openai.BadRequestError, "'anything' is not supported"),
        (lambda: chat_with(n=20), openai.BadRequestError, "between 1 and 8"),
        (
            lambda: client.embeddings.create(model=MODEL, input="x"),
            *(openai.NotFoundError, "/v1/embeddings"),
        ),
    ):
        assert says in refusal(kind, ask), says


def chat_with(**more: Any) -> None:
    """A chat with something wrong in it."""
    extra = {name: value for name, value in more.items() if name == "anything"}
    given = {name: value for name, value in more.items() if name != "anything"}
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 2, **given}
    client.chat.completions.create(**asked, extra_body=extra)


def refusal(kind: type[Exception], ask: Callable[[], object]) -> str:
    """What an error of this kind says; nothing if there is none."""
    try:
        ask()
    except kind as error:
        return str(error)
    return ""


if __name__ == "__main__":
    assert MODEL in [model.id for model in client.models.list()]
    said = chat()
    stream(said)
    helper_stream(said)
    tools_and_schemas()
    several_choices()
    completions()
    responses()
    errors()
    print(f"openai {openai.__version__}: ok")
