"""Chat templates are programs of strangers: they end in time, and refuse in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.text import chat_template
from client.text.chat_template import render_bounded
from client.text.tokenizer import ModelTokenizer
from swarm.errors import BadInput
from tests.client.text.small_tokenizers import CHATML, byte_level

HELLO = [{"role": "user", "content": "Hello"}]
ALTERNATES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def tokenizer_with(folder: Path, template: Any) -> ModelTokenizer:
    return ModelTokenizer(byte_level(folder, chat_template=template))


def test_a_chat_has_the_ids_of_transformers(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    theirs = tokenizer._inner.apply_chat_template(
        HELLO, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.ids_of_messages(HELLO) == theirs


@pytest.mark.parametrize(
    ("template", "roles", "says"),
    [
        (ALTERNATES, ["system", "user"], "System role not supported"),
        (ALTERNATES, ["user", "user"], "Roles must alternate"),
        ("{% for m in messages %}{{ m['content'] }", ["user"], "chat template"),
        ("{{ messages[9]['content'] }}", ["user"], "chat template"),
        ("{{ ''.__class__.__mro__ }}", ["user"], "chat template"),
        ("{{ raise_exception('\x1b[2J') }}", ["user"], r"\x1b[2J"),
        ([{"name": "rag", "template": "x"}], ["user"], "multiple chat templates"),
    ],
)
def test_a_template_that_refuses_is_one_sentence(
    tmp_path: Path, template: Any, roles: list[str], says: str
) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    with pytest.raises(BadInput) as refused:
        tokenizer.ids_of_messages([{"role": role, "content": "x"} for role in roles])
    assert says in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        ("{% for a in range(9**5) %}{% for b in range(9**5) %}{% endfor %}{% endfor %}", "longer"),
        ("{{ 10 ** (10 ** 10) }}", "longer"),
        ("{{ 'x' * 10 ** 11 }}", "MemoryError"),
        ("{% set n = namespace(s='xy') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}"
         "{% endfor %}", "Memory"),
        ("{{ 'x' * 30000 }}", "bytes"),
    ],
)  # fmt: skip
def test_a_template_that_would_not_end_or_fit_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str, says: str
) -> None:
    if says == "longer":
        monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    else:
        monkeypatch.setattr(chat_template, "SECONDS", 60)
    monkeypatch.setattr(chat_template, "MORE_BYTES", 1 << 28)
    monkeypatch.setattr(chat_template, "LONGEST", 20_000)
    with pytest.raises(BadInput, match=says):
        tokenizer_with(tmp_path, bomb).ids_of_messages(HELLO)


def test_what_the_copy_does_stays_in_the_copy() -> None:
    seen: list[str] = []

    def render() -> str:
        seen.append("rendered")
        return json.dumps(seen)

    assert render_bounded(render) == '["rendered"]'
    assert seen == []
