"""KnownTokenizers: tokenizers that transformers has read once, remembered so as to read them alone.

Importing transformers takes seconds, and most of its tokenizers only stand before one of the
package tokenizers, which loads at once. That one is kept as transformers has set it up, under a
digest over the model's small files and both packages' versions: what is read back is the same.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from swarm.checkpoint.hub_model import CACHE
from swarm.state_folder import write_private

logger = logging.getLogger(__name__)

FOLDER = "tokenizers"  # of files, each named after a digest
KEPT = 8  # of these files: they may have 20 MB each
ENDINGS = (".json", ".model", ".txt", ".jinja", ".tiktoken")  # of files that say how text is read
LONGEST = 1 << 27  # bytes of such a file
METHODS = ("__call__", "_encode_plus", "decode", "_decode")  # that a class of its own may replace


@dataclass(frozen=True, slots=True)
class Facts:
    """What is asked of a tokenizer beside reading and writing text, and the tokenizer itself."""

    backend: str  # as the package tokenizers saves it
    eos_token_id: int | None
    unk_token_id: int | None
    all_special_ids: list[int]
    all_special_tokens: list[str]


class KnownTokenizer:
    """Stands in for a tokenizer of transformers; chats still ask for that one."""

    clean_up_tokenization_spaces = False  # others are not remembered

    def __init__(self, facts: Facts, load: Callable[[], Any]) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(facts.backend)
        self._load = load
        self.eos_token_id, self.unk_token_id = facts.eos_token_id, facts.unk_token_id
        self.all_special_ids = facts.all_special_ids
        self.all_special_tokens = facts.all_special_tokens

    def __call__(
        self, text: str, *, add_special_tokens: bool, verbose: bool = True
    ) -> dict[str, Any]:
        """The ids of a text."""
        found = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **_options: bool) -> str:
        """The text of ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @property
    def chat_template(self) -> Any:
        """The model's; loads transformers, so that who renders it has that by then."""
        return self._whole.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """The text of a chat."""
        return self._whole.apply_chat_template(messages, **options)

    @cached_property
    def _whole(self) -> Any:
        return self._load()


def recall_tokenizer(folder: Path, load: Callable[[], Any]) -> KnownTokenizer | None:
    """The tokenizer of a model folder, if it was remembered; `load` is for what it cannot do."""
    try:
        path = _path_of(folder)
        facts = Facts(**json.loads(path.read_bytes()))
        path.touch()  # used: kept for longer
        return KnownTokenizer(facts, load)
    except Exception as error:  # noqa: BLE001 - parsers in Rust raise just that; transformers reads it, then
        logger.debug("no tokenizer is remembered for %s: %s", folder.name, error)
        return None


def remember_tokenizer(folder: Path, loaded: Any) -> None:
    """Keep a tokenizer that transformers has loaded, if the package tokenizers does all its work.

    Where there is no room for it, the next one that asks loads transformers again.
    """
    if not _is_plain(loaded):
        return
    try:
        path = _path_of(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps(asdict(_facts_of(loaded))).encode())
        for old in sorted(path.parent.glob("*.json"), key=_used_at)[:-KEPT]:
            old.unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001 - parts in Python cannot be saved; it saves seconds only
        logger.info("the tokenizer of %s will not be remembered: %s", folder.name, error)


def _is_plain(loaded: Any) -> bool:
    """Whether a tokenizer does nothing of its own between a text and the package tokenizers."""
    from transformers import TokenizersBackend  # loaded already, if `loaded` is

    kind = type(loaded)
    return (
        isinstance(loaded, TokenizersBackend)
        and all(getattr(kind, name) is getattr(TokenizersBackend, name) for name in METHODS)
        and not loaded.split_special_tokens
    )


def _facts_of(loaded: Any) -> Facts:
    backend = type(loaded.backend_tokenizer).from_str(loaded.backend_tokenizer.to_str())
    backend.no_truncation()  # as transformers does at every call of ours
    backend.no_padding()
    return Facts(
        backend.to_str(),
        loaded.eos_token_id,
        loaded.unk_token_id,
        list(loaded.all_special_ids),
        list(loaded.all_special_tokens),
    )


def _path_of(folder: Path) -> Path:
    """Where the tokenizer of a folder is kept, by all that it is made of; raises OSError."""
    content = hashlib.sha256(f"{version('transformers')} {version('tokenizers')}".encode())
    for path in _files_of(folder):
        data = path.read_bytes()
        content.update(f"\n{path.name} {len(data)}\n".encode())
        content.update(data)
    return Path(constants.HF_HOME) / CACHE / FOLDER / f"{content.hexdigest()}.json"


def _files_of(folder: Path) -> Iterator[Path]:
    """The files that a tokenizer may be made of, in one order; raises OSError for one too long."""
    for path in sorted(folder.iterdir()):
        if path.name.endswith(ENDINGS) and path.is_file():
            if path.stat().st_size > LONGEST:
                raise OSError(f"{path.name} is too long")
            yield path


def _used_at(path: Path) -> float:
    return path.stat().st_mtime
