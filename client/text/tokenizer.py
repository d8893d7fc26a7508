"""Tokenizer: text to ids and back with the model's own files, or raw bytes if asked for."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from client.text.chat_template import render_bounded
from client.text.known_tokenizers import recall_tokenizer, remember_tokenizer
from client.text.tool_prompt import Tools, with_tools_told
from swarm.checkpoint.safetensors_headers import read_json
from swarm.errors import BadInput, BadModel
from swarm.formatting import printable
from swarm.model_spec import ModelSpec

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
FOREIGN = ("tekken.json",)  # formats that transformers does not read
BYTES = 256  # ids that stand for a byte each when a model has no tokenizer
Messages = Sequence[Mapping[str, Any]]

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What the client needs of a tokenizer; there are three kinds."""

    end_of_turn: tuple[int, ...]  # ids that end an answer in a chat, besides the model's own

    def ids_of_text(self, text: str) -> list[int]:
        """The ids of a prompt; raises BadInput."""

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """The ids of a chat, up to where the assistant is to speak; raises BadInput."""

    def template(self) -> str:
        """The chat template that is used with tools, "" if there is none."""

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; unfinished characters end as U+FFFD."""


class ModelTokenizer:
    """The tokenizer in the model's folder."""

    def __init__(self, folder: Path) -> None:
        self._inner: Any = _recalled(folder)
        end = self._inner.eos_token_id
        self.end_of_turn: tuple[int, ...] = (end,) if isinstance(end, int) and end >= 0 else ()
        self._cleans = _cleans_up(self._inner)

    def ids_of_text(self, text: str) -> list[int]:
        """The ids of a prompt; raises BadInput."""
        ids = self._encoded(text)
        specials = set(self._inner.all_special_ids) - {self._inner.unk_token_id}
        if text.strip() and specials.issuperset(ids) and not self._names_special(text):
            raise BadModel(
                "The model's tokenizer reads nothing of the prompt.", "Fetch its files again."
            )
        return ids

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """The ids of a chat, up to where the assistant is to speak; raises BadInput."""
        if not self._inner.chat_template:
            raise _no_chat()
        if tools and "tools" not in self.template():
            messages, tools = with_tools_told(messages, tools), ()
        return self._encoded(render_bounded(lambda: self._rendered(messages, tools)), is_whole=True)

    def template(self) -> str:
        """The chat template that is used with tools, "" if there is none."""
        found = self._inner.chat_template or ""
        named = found if isinstance(found, dict) else {"default": found}
        return str(named.get("tool_use") or named.get("default") or "")

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; unfinished characters end as U+FFFD."""
        text: str = self._inner.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=self._cleans
        )
        return text

    def _rendered(self, messages: Messages, tools: Tools) -> str:
        text: str = self._inner.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        return text

    def _encoded(self, text: str, *, is_whole: bool = False) -> list[int]:
        """The ids of a text, as it is if it is a whole chat, else with the model's first token."""
        try:
            found = self._inner(text, add_special_tokens=not is_whole, verbose=False)
        except Exception as error:  # a stranger's tokenizer may fail at anything
            cause = printable(str(error)).rstrip(".")
            raise BadInput(
                f"The model's tokenizer cannot read this text: {cause}.", "Change the text."
            ) from error
        return [int(token) for token in found["input_ids"]]

    def _names_special(self, text: str) -> bool:
        return any(token in text for token in self._inner.all_special_tokens)


class ByteTokenizer:
    """UTF-8 bytes as ids, for whoever asks for them."""

    end_of_turn: tuple[int, ...] = ()

    def ids_of_text(self, text: str) -> list[int]:
        """The bytes of a prompt."""
        return list(text.encode())

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """There is no chat without a template: always raises BadInput."""
        raise _no_chat()

    def template(self) -> str:
        """None."""
        return ""

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of those ids that are bytes; unfinished characters end as U+FFFD."""
        return bytes(token for token in ids if token < BYTES).decode(errors="replace")


class NoTokenizer:
    """For a model without a tokenizer that can be read: it is asked in ids, and answers in ids."""

    end_of_turn: tuple[int, ...] = ()

    def __init__(self, cause: str) -> None:
        self._cause = cause

    def ids_of_text(self, text: str) -> NoReturn:
        """Always raises BadModel."""
        raise BadModel(self._cause, "Give ids in place of text, or ask for raw_bytes.")

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> NoReturn:
        """Always raises BadModel."""
        self.ids_of_text("")

    def template(self) -> str:
        """None."""
        return ""

    def text_of(self, ids: Sequence[int]) -> str:
        """Nothing: what the ids mean is not known here."""
        return ""


def read_tokenizer(folder: Path, spec: ModelSpec, *, raw_bytes: bool = False) -> Tokenizer:
    """The tokenizer of a model folder, or bytes if asked for; raises BadModel."""
    if raw_bytes:
        if spec.vocab < BYTES:
            cause = f"{spec.vocab} ids of {spec.name} are too few for raw bytes."
            raise BadModel(cause, "Give ids in place of text.")
        return ByteTokenizer()
    if any((folder / name).is_file() for name in FILES):
        return ModelTokenizer(folder)
    foreign = next((name for name in FOREIGN if (folder / name).is_file()), "")
    found = f" that can be read here, only {foreign}" if foreign else ""
    return NoTokenizer(f"{spec.name} has no tokenizer{found}.")


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end an answer, by generation_config.json or else by config.json."""
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            return _stop_ids_of(read_json(path))
        except BadModel as error:  # transformers goes on without it, too
            logger.warning("ignored: %s", error)
    path = folder / "config.json"
    return _stop_ids_of(read_json(path)) if path.is_file() else ()


def _stop_ids_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    found = config.get("eos_token_id")
    if found is None:
        found = config.get("text_config", {}).get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int) and token >= 0)


def _recalled(folder: Path) -> Any:
    """A tokenizer without transformers, if it was read here before; raises BadModel."""
    if (known := recall_tokenizer(folder, lambda: _load(folder))) is not None:
        return known
    loaded = _load(folder)
    if not _cleans_up(loaded):
        remember_tokenizer(folder, loaded)
    return loaded


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer  # seconds of a core, while the network opens

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its parsers raise whatever they like
        raise _unreadable(folder, str(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a parser in Rust
            raise
        raise _unreadable(folder, str(error)) from error


def _unreadable(folder: Path, why: str) -> BadModel:
    if (folder / "tokenizer.model").is_file() and not importlib.util.find_spec("sentencepiece"):
        return BadModel(
            f"The tokenizer in {folder} needs the package sentencepiece.",
            "Install it: pip install sentencepiece.",
        )
    return BadModel(
        f"The tokenizer in {folder} cannot be read: {printable(why).rstrip('.')}.",
        "Fetch its files again, or upgrade the packages transformers and tokenizers.",
    )


def _cleans_up(inner: Any) -> bool:
    """Whether transformers takes blanks out of decoded text, which it never does after BPE."""
    if not getattr(inner, "clean_up_tokenization_spaces", False):
        return False
    backend = getattr(inner, "backend_tokenizer", None)
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return type(getattr(backend, "model", None)).__name__ != "BPE" or getattr(inner, forced, False)


def _no_chat() -> BadInput:
    return BadInput("This model has no chat template.", "Give a prompt instead of messages.")
