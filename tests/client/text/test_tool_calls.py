"""Calls of tools in what models write: whole, in pieces of any size, and what is none."""

import json

import pytest

from client.text.reasoning import ReasoningReader, Thought
from client.text.tool_calls import Call, CallFormat, ToolCallReader
from client.text.tool_prompt import with_tools_told

NAMES = ["look", "add"]
HERMES = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
LOOK = Call("look", '{"at": "é"}')


def read(written: str, format_: CallFormat, size: int) -> list[str | Call]:
    """What comes of a text in pieces; neighbouring texts as one."""
    reader = ToolCallReader(format_, NAMES)
    pieces = [written[at : at + size] for at in range(0, len(written), size)]
    found = [each for piece in pieces for each in reader.feed(piece)] + reader.finish()
    joined: list[str | Call] = []
    for each in found:
        if joined and isinstance(each, str) and isinstance(joined[-1], str):
            joined[-1] += each
        else:
            joined.append(each)
    return joined


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("format_", "written", "found"),
    [
        (CallFormat.HERMES, HERMES, [LOOK]),
        (CallFormat.HERMES, f"Let me see.\n\n{HERMES}\n{HERMES}", ["Let me see.", LOOK, LOOK]),
        (CallFormat.HERMES, "a < b <tool_ x\n", ["a < b <tool_ x\n"]),
        (CallFormat.HERMES, "<tool_call>nothing</tool_call>", ["<tool_call>nothing</tool_call>"]),
        (CallFormat.HERMES, HERMES.removesuffix("</tool_call>"), [LOOK]),
        (CallFormat.HERMES, '<tool_call>{"name": "lo', ['<tool_call>{"name": "lo']),
        (
            CallFormat.XML,
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\ny\n"
            "</parameter>\n</function>\n</tool_call>",
            [Call("add", '{"a": 1, "b": "x\\ny"}')],
        ),
        (CallFormat.JSON, '{"name": "look", "parameters": {"at": "é"}}', [LOOK]),
        (CallFormat.JSON, '[{"name": "look", "arguments": {"at": "é"}}]', [LOOK]),
        (
            CallFormat.JSON,
            '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {}}',
            [Call("add", "{}")] * 2,
        ),
        (CallFormat.JSON, '{"name": "Ada", "age": 36}', ['{"name": "Ada", "age": 36}']),
        (CallFormat.JSON, "Hello {x}", ["Hello {x}"]),
        (CallFormat.JSON, "[1, 2", ["[1, 2"]),
    ],
)
def test_calls_are_found_whatever_the_pieces_and_the_rest_stays_text(
    format_: CallFormat, written: str, found: list[str | Call], size: int
) -> None:
    assert read(written, format_, size) == found


def test_text_before_a_call_does_not_wait_for_it() -> None:
    reader = ToolCallReader(CallFormat.HERMES, NAMES)
    assert reader.feed("Let me") == ["Let me"]
    assert reader.feed(" see.\n<tool") == [" see."]


@pytest.mark.parametrize(
    ("template", "format_"),
    [
        ("{% if tools %}<tool_call>{% endif %}", CallFormat.HERMES),
        ("{% if tools %}<tool_call><function=x>{% endif %}", CallFormat.XML),
        ("[TOOL_CALLS]", CallFormat.JSON),
        ('{"name": function name, "parameters": dictionary}', CallFormat.JSON),
        ("", CallFormat.HERMES),
    ],
)
def test_the_format_is_the_one_that_the_template_teaches(
    template: str, format_: CallFormat
) -> None:
    assert CallFormat.of(template) is format_


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize(
    ("written", "is_thinking", "thought", "text"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, "hm", "Yes."),
        ("hm, so\n</think>\n\nYes.", True, "hm, so", "Yes."),
        ("Yes. <think>", False, "", "Yes. <think>"),
        ("<thin", False, "", "<thin"),
        ("<think>cut </thi", False, "cut </thi", ""),
    ],
)
def test_thoughts_are_parted_from_the_answer(
    written: str, is_thinking: bool, thought: str, text: str, size: int
) -> None:
    reader = ReasoningReader(is_thinking=is_thinking)
    pieces = [written[at : at + size] for at in range(0, len(written), size)]
    found = [each for piece in pieces for each in reader.feed(piece)] + reader.finish()
    assert "".join(each.text for each in found if isinstance(each, Thought)) == thought
    assert "".join(each for each in found if isinstance(each, str)) == text


def test_a_prompt_that_opens_the_tag_begins_with_a_thought() -> None:
    assert ReasoningReader.behind("assistant\n<think>\n").feed("so") == [Thought("so")]
    assert ReasoningReader.behind("assistant\n").feed("so") == ["so"]


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"at": "é"}}}
    told = with_tools_told(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a cat", "tool_call_id": "c"},
            {"role": "tool", "content": "a dog", "tool_call_id": "d"},
        ],
        [tool],
    )
    assert [turn["role"] for turn in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\nYou may call tools.")
    assert json.dumps(tool) in told[0]["content"]
    assert told[2]["content"] == HERMES
    assert told[3]["content"].count("<tool_response>") == 2
    assert with_tools_told([{"role": "user", "content": "x"}], [tool])[0]["role"] == "system"
