"""Small tokenizers of the usual kinds, in folders as models have them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

SPECIALS = ("<unk>", "<s>", "</s>", "<|python_tag|>")
PIECES = ("▁there", "▁was", "▁time", "▁a", "▁upon", "▁Once", "python")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sentencepiece(folder: Path, **config: Any) -> Path:
    """Llama 2's shape: bytes as a fallback, a blank before the text that decoding strips again."""
    vocab = _numbered((*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))))
    for letter in "▁" + "".join(map(chr, range(33, 127))):
        vocab.setdefault(letter, len(vocab))
    merges = _merges(PIECES, vocab)
    made = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return _saved(folder, made, config)


def byte_level(folder: Path, **config: Any) -> Path:
    """GPT-2's shape: every byte is a letter of its own alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab=_numbered((*SPECIALS, *alphabet)), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return _saved(folder, made, config)


def word_piece(folder: Path, **config: Any) -> Path:
    """BERT's shape: words parted by blanks, later parts of a word behind ##."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = _numbered((*SPECIALS, *letters, *(f"##{each}" for each in letters), "there", "##was"))
    made = Tokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return _saved(folder, made, config)


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def _merges(pieces: Sequence[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Teach the vocabulary each piece, letter by letter."""
    merges = []
    for piece in pieces:
        done = piece[0]
        for letter in piece[1:]:
            if done + letter not in vocab:
                vocab[done + letter] = len(vocab)
                merges.append((done, letter))
            done += letter
    return merges


def _saved(folder: Path, made: Tokenizer, config: dict[str, Any]) -> Path:
    made.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    made.add_tokens([AddedToken(s, special=False) for s in ("<|im_start|>", "<|im_end|>")])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 10**30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values | config))
    return folder
