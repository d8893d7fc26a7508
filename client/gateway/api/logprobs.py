"""Log-probabilities of tokens as OpenAI's clients read them, in both of its APIs."""

from collections.abc import Iterable, Sequence
from typing import Any

from client.text.tokenizer import Tokenizer
from swarm.wire.token_logprobs import TokenLogprobs


def chat_logprobs(tokens: Iterable[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """Those of a chat's answer."""
    return {"content": [_shown(each, tokenizer) for each in tokens], "refusal": None}


def completion_logprobs(
    tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, offset: int = 0
) -> dict[str, Any]:
    """Those of a completion, whose text begins behind so many characters."""
    texts = [tokenizer.text_of([each.id]) for each in tokens]
    places = [offset + sum(map(len, texts[:at])) for at in range(len(texts))]
    tops = [{tokenizer.text_of([id_]): value for id_, value in each.top} for each in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": tops,
        "text_offset": places,
    }


def _shown(token: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    likeliest = [_named(id_, value, tokenizer) for id_, value in token.top]
    return {**_named(token.id, token.logprob, tokenizer), "top_logprobs": likeliest}


def _named(id_: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.text_of([id_])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}
