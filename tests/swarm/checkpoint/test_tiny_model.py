"""The built-in model: small, cut by eight, readable, and far from ties."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "swarm" / "models" / "swarm-tiny"
CORPUS = ROOT / "scripts" / "corpus"


@dataclass(frozen=True)
class Continuation:
    """What greedy decoding adds to a prompt, and by how much each token won."""

    text: str
    margins: tuple[float, ...]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = AutoTokenizer.from_pretrained(FOLDER)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    # So small a model only loses time when several threads wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    torch.set_num_threads(threads)


@torch.inference_mode()
def continue_greedily(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> Continuation:
    fresh, past = torch.tensor([tokenizer.encode(prompt)]), None
    found: list[int] = []
    margins: list[float] = []
    while len(found) < tokens and not (found and found[-1] in model.generation_config.eos_token_id):
        output = model(fresh, past_key_values=past, use_cache=True)
        best, past = output.logits[0, -1].topk(2), output.past_key_values
        margins.append(float(best.values[0] - best.values[1]))
        found.append(int(best.indices[0]))
        fresh = best.indices[None, :1]
    return Continuation(str(tokenizer.decode(found)), tuple(margins))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def corpus_words() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in CORPUS.glob("*.txt"))
    return {word for text in texts for word in words_of(text)}


def test_the_folder_fits_in_four_million_bytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_the_shape_divides_by_eight_ranks() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 8
    assert config["num_key_value_heads"] == 8
    assert config["num_attention_heads"] == 16
    assert config["intermediate_size"] == 1024
    assert config["tie_word_embeddings"] is True


def test_the_weights_are_stored_as_bfloat16() -> None:
    stored = LlamaForCausalLM.from_pretrained(FOLDER, dtype="auto")
    assert {weight.dtype for weight in stored.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "text", ["Once upon a time", "  naïve 日本語 🦊\n\tÅ don't , stop .", "", "\x00 مرحبا"]
)
def test_every_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_renders_every_role(tokenizer: PreTrainedTokenizerFast) -> None:
    roles = (("system", "Be kind."), ("user", "Hello!"), ("assistant", "Hi."), ("user", "Bye!"))
    messages = [{"role": role, "content": content} for role, content in roles]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|begin|><|system|>Be kind.<|end|><|user|>Hello!<|end|>"
        "<|assistant|>Hi.<|end|><|user|>Bye!<|end|><|assistant|>"
    )


def test_each_marker_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    markers = "<|system|><|user|><|assistant|><|end|><|begin|><|endoftext|><|pad|>"
    assert len(tokenizer.encode(markers)) == 7


def test_a_story_is_readable_and_far_from_ties(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    story = continue_greedily(model, tokenizer, "Once upon a time", 48)
    # The last word may be cut in two.
    words, known = words_of(story.text)[:-1], corpus_words()
    assert len(story.margins) == 48
    assert min(story.margins) > 1e-3
    assert sum(word in known for word in words) >= 0.95 * len(words)
    assert len(set(words)) >= 10


def test_a_chat_answer_stops_by_itself(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a swarm?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    answer = continue_greedily(model, tokenizer, str(prompt), 96)
    assert answer.text.endswith("<|end|>")
    assert "computers" in answer.text
    assert min(answer.margins) > 1e-3


def test_no_held_out_document_is_empty_or_has_machine_paths() -> None:
    lines = (CORPUS / "heldout.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 10
    assert all(line and "/" not in line for line in lines)
