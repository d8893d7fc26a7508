"""Tokenizer: text to ids and back with the model's own files, or raw bytes where it has none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from swarm.errors import BadInput, BadModel
from swarm.headers import read_json
from swarm.model import ModelSpec

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
BYTES = 256  # ids that stand for a byte each when a model has no tokenizer
Messages = Sequence[Mapping[str, str]]


class Tokenizer(Protocol):
    """What the client needs of a tokenizer; there are two kinds."""

    notice: str  # what a person should know about it, once; empty if nothing

    def ids_of_text(self, text: str) -> list[int]:
        """The ids of a prompt."""

    def ids_of_messages(self, messages: Messages) -> list[int]:
        """The ids of a chat, up to where the assistant is to speak."""

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; unfinished characters end as U+FFFD."""


class ModelTokenizer:
    """The tokenizer in the model's folder."""

    notice = ""

    def __init__(self, folder: Path) -> None:
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise BadModel(
                f"The tokenizer in {folder} cannot be read: {error}.", "Fetch its files again."
            ) from error

    def ids_of_text(self, text: str) -> list[int]:
        """The ids of a prompt."""
        return [int(token) for token in self._inner(text, verbose=False)["input_ids"]]

    def ids_of_messages(self, messages: Messages) -> list[int]:
        """The ids of a chat, up to where the assistant is to speak."""
        if not self._inner.chat_template:
            raise _no_chat()
        ids = self._inner.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},
        )
        return [int(token) for token in ids]

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; unfinished characters end as U+FFFD."""
        text: str = self._inner.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class ByteTokenizer:
    """UTF-8 bytes as ids, for a model folder without a tokenizer."""

    notice = "The model has no tokenizer: prompt and answer are raw UTF-8 bytes."

    def ids_of_text(self, text: str) -> list[int]:
        """The bytes of a prompt."""
        return list(text.encode())

    def ids_of_messages(self, messages: Messages) -> list[int]:
        """There is no chat without a template: always raises BadInput."""
        raise _no_chat()

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of those ids that are bytes; unfinished characters end as U+FFFD."""
        return bytes(token for token in ids if token < BYTES).decode(errors="replace")


def read_tokenizer(folder: Path, spec: ModelSpec) -> Tokenizer:
    """The tokenizer of a model folder, or bytes if it has none; raises BadModel."""
    if any((folder / name).is_file() for name in FILES):
        return ModelTokenizer(folder)
    if spec.vocab < BYTES:
        raise BadModel(
            f"{spec.name} has no tokenizer, and {spec.vocab} ids are too few for bytes.",
            "Put its tokenizer files into the folder.",
        )
    return ByteTokenizer()


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end an answer, by generation_config.json or else by config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            return _stop_ids_of(read_json(folder / name))
    return ()


def _stop_ids_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    found = config.get("eos_token_id")
    if found is None:
        found = config.get("text_config", {}).get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int) and token >= 0)


def _no_chat() -> BadInput:
    return BadInput("This model has no chat template.", "Give a prompt instead of messages.")
