"""Write the corpus, train the built-in model swarm-tiny on it, and save it as ordinary files.

Run `python scripts/train_tiny.py [--out DIR] [--steps N]`: one seeded run on one processor core.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus.grammar import (
    ASSISTANT,
    END_OF_TEXT,
    FOLDER,
    SYSTEM,
    TURN_END,
    USER,
    Grammar,
    read_grammar,
    write_chat,
    write_documents,
    write_story,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HELDOUT = FOLDER / "heldout.txt"
PROMPTS = FOLDER / "prompts.txt"
OUT = Path(__file__).parent.parent / "swarm" / "models" / "swarm-tiny"
BEGIN, PAD = "<|begin|>", "<|pad|>"
SPECIALS = (END_OF_TEXT, BEGIN, PAD, SYSTEM, USER, ASSISTANT, TURN_END)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """How large the model is and how it is trained."""

    vocabulary: int = 512
    head_dimension: int = 12
    positions: int = 2048
    training_documents: int = 9000
    steps: int = 1400
    batch_tokens: int = 512
    usual_length: int = 128
    matrix_rate: float = 0.025
    embedding_rate: float = 0.01
    warmup_steps: int = 30
    seed: int = 7


def main() -> None:
    """Train, save and judge."""
    recipe, out = _read_flags()
    torch.set_num_threads(1)
    grammar = read_grammar()
    heldout = write_heldout(grammar, random.Random(recipe.seed + 1))
    HELDOUT.write_text("\n".join(heldout) + "\n", encoding="utf-8")
    documents = write_training_documents(grammar, recipe, set(heldout))
    tokenizer = train_tokenizer(documents, recipe)
    model = train_model(tokenizer, documents, recipe)
    save(model, tokenizer, out)
    judge(out, heldout)


def write_heldout(grammar: Grammar, chance: random.Random) -> list[str]:
    """Stories and chats, one a line, that the training text does not contain."""
    stories = [write_story(grammar, chance) for _ in range(10)]
    return stories + [write_chat(grammar, chance) for _ in range(10)]


def write_training_documents(grammar: Grammar, recipe: Recipe, heldout: set[str]) -> list[str]:
    """The training text, without any document that is held out."""
    source = write_documents(grammar, random.Random(recipe.seed))
    drawn = [next(source) for _ in range(recipe.training_documents)]
    return [document for document in drawn if document not in heldout]


def train_tokenizer(documents: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text goes there and back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_plain(text) for text in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained model; its heads and columns divide by eight ranks."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=64,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=recipe.head_dimension,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_model(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], recipe: Recipe
) -> LlamaForCausalLM:
    """Train with Muon on the matrices and AdamW on the rest; the rates rise and then fall."""
    torch.manual_seed(recipe.seed)
    model = make_model(tokenizer, recipe).train()
    optimizers = _make_optimizers(model, recipe)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started, smooth = time.monotonic(), 0.0
    for step, batch in enumerate(_draw_batches(tokenizer, documents, recipe)):
        scale = min((step + 1) / recipe.warmup_steps, 1.0) * (1.0 - step / recipe.steps)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        loss = _take_step(model, optimizers, batch)
        smooth = loss if step == 0 else 0.95 * smooth + 0.05 * loss
        if step % 50 == 0 or step == recipe.steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step} loss {smooth:.4f} seconds {seconds:.0f}", flush=True)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save ordinary Hugging Face files, with the weights as bfloat16."""
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, turn_end],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def judge(out: Path, heldout: list[str]) -> None:
    """Print the size, the held-out perplexity, and the greedy margins of the saved files."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    print("bytes", sum(path.stat().st_size for path in out.iterdir()))
    print(f"held-out perplexity {perplexity_of(model, tokenizer, heldout):.4f}")
    blocks = PROMPTS.read_text(encoding="utf-8").split("\n\n")
    for title, block in zip(("ordinary", "odd"), blocks, strict=True):
        margins: list[float] = []
        for prompt in block.splitlines():
            tokens, found = continue_greedily(model, tokenizer.encode(prompt), 200)
            margins += found[:64]
            smallest, at_all = min(found[:64]), min(found)
            print(
                f"[{len(found)} {smallest:.4f} {at_all:.4f}] {prompt} >>>{tokenizer.decode(tokens)}"
            )
        median = sorted(margins)[len(margins) // 2]
        print(f"{title} prompts: margin min {min(margins):.4f} median {median:.4f}")


@torch.inference_mode()
def continue_greedily(
    model: LlamaForCausalLM, prompt: list[int], length: int
) -> tuple[list[int], list[float]]:
    """The greedy continuation up to its end token, and by how much each token won."""
    tokens, past = list(prompt), None
    margins: list[float] = []
    ends = model.generation_config.eos_token_id
    fresh = torch.tensor([prompt])
    while len(margins) < length:
        output = model(fresh, past_key_values=past, use_cache=True)
        best = output.logits[0, -1].topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
        if tokens[-1] in ends:
            break
        fresh, past = best.indices[None, :1], output.past_key_values
    return tokens[len(prompt) :], margins


@torch.inference_mode()
def perplexity_of(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> float:
    """The perplexity per token, each document read from its own beginning."""
    loss, count = 0.0, 0
    for document in documents:
        batch = torch.tensor([tokenizer.encode(document)])
        predicted = batch.shape[1] - 1
        loss += float(model(batch, labels=batch).loss) * predicted
        count += predicted
    return math.exp(loss / count)


def _read_flags() -> tuple[Recipe, Path]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    flags = parser.parse_args()
    return Recipe(steps=flags.steps), flags.out


def _plain(document: str) -> str:
    for special in SPECIALS:
        document = document.replace(special, "\n")
    return document


def _make_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    embedding = model.model.embed_tokens.weight
    inside = [weight for weight in model.parameters() if weight is not embedding]
    matrices = [weight for weight in inside if weight.ndim == 2]
    rest = [embedding, *(weight for weight in inside if weight.ndim != 2)]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=recipe.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _take_step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], batch: Tensor
) -> float:
    loss = model(batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _draw_batches(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], recipe: Recipe
) -> Iterator[Tensor]:
    chance = random.Random(recipe.seed)
    # Most documents end with the end token; some with a line break, as in a text file.
    ended = [text + (END_OF_TEXT if chance.random() < 0.8 else "\n") for text in documents]
    begun = [BEGIN + text if chance.random() < 0.3 else text for text in ended]
    encoded = tokenizer(begun)["input_ids"]
    starts = [0]
    for document in encoded:
        starts.append(starts[-1] + len(document))
    stream = torch.tensor([token for document in encoded for token in document])
    print(f"corpus {len(stream)} tokens")
    for step in range(recipe.steps):
        length = _length_at(step, recipe)
        rows = max(1, recipe.batch_tokens // length)
        last = len(stream) - length
        begins = [_begin_of(starts, last, chance) for _ in range(rows)]
        yield torch.stack([stream[begin : begin + length] for begin in begins])


def _length_at(step: int, recipe: Recipe) -> int:
    # Short windows are cheap and teach nearly everything; the long ones at the end teach reach.
    if step < 0.7 * recipe.steps:
        return recipe.usual_length
    if step % 100 == 99:
        return recipe.positions
    return (8 if step % 20 == 9 else 2) * recipe.usual_length


def _begin_of(starts: list[int], last: int, chance: random.Random) -> int:
    begin = chance.choice(starts) if chance.random() < 0.6 else chance.randrange(last + 1)
    return min(begin, last)


if __name__ == "__main__":
    main()
