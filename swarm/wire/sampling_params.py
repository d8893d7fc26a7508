"""Sampling: how the next token is chosen and when a generation ends, in plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from swarm.errors import BadSampling
from swarm.wire.grammars import Grammar, check_grammar
from swarm.wire.token_logprobs import MOST_TOP

MOST_STOPS = 16  # stop strings, and stop ids times 16
LONGEST_STOP = 256  # characters
MOST_SPECULATED = 15  # ids guessed for one step
MOST_TOKENS = 1 << 20
MOST_BIASES = 300  # ids whose scores a request may change
LARGEST_BIAS = 100.0
LARGEST_PENALTY = 2.0  # of presence and frequency


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of one generation; the defaults are greedy. Raises BadSampling out of range."""

    max_tokens: int = 64
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # of ids in prompt or answer: scores are divided by it
    presence_penalty: float = 0.0  # of ids in the answer: taken off once
    frequency_penalty: float = 0.0  # and once for each time that they came
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the scores of these ids
    seed: int | None = None  # a replay repeats the same tokens only with a seed
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    speculate: int | None = None  # most ids to guess ahead; None: as many as pay
    top_logprobs: int | None = None  # so many likeliest ids are told of each token; None: nothing
    grammar: Grammar = ()  # that the answer must follow: kind and text

    def __post_init__(self) -> None:
        _check_whole("max_tokens", self.max_tokens, 1, MOST_TOKENS)
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_whole("top_k", self.top_k, 0, 1 << 31)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_below=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_below=True)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), -LARGEST_PENALTY, LARGEST_PENALTY)
        _check_bias(self.logit_bias)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, (1 << 63) - 1)
        if self.speculate is not None:
            _check_whole("speculate", self.speculate, 0, MOST_SPECULATED)
        if self.top_logprobs is not None:
            _check_whole("top_logprobs", self.top_logprobs, 0, MOST_TOP)
        check_grammar(self.grammar)
        _check_stops(self.stop)
        _check_stop_ids(self.stop_ids)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def changes_scores(self) -> bool:
        """Whether scores of single ids change, so that no other id is surely out of question."""
        counts = self.presence_penalty or self.frequency_penalty
        return bool(self.repetition_penalty != 1 or counts or self.logit_bias)

    @property
    def needs_all_scores(self) -> bool:
        """Whether the scores of a few likeliest ids are too little to draw and tell."""
        return bool(self.changes_scores or self.top_logprobs is not None or self.grammar)

    def top_of(self, vocab: int) -> int | None:
        """How many likeliest ids are told, in a vocabulary that may have fewer."""
        return None if self.top_logprobs is None else min(self.top_logprobs, vocab)

    def check_ids(self, vocab: int) -> None:
        """Refuse a bias of an id that the vocabulary does not have: raises BadSampling."""
        for token, _ in self.logit_bias:
            if token >= vocab:
                need = f"the ids of this model are below {vocab}."
                raise BadSampling(f"logit_bias names id {token};", need, option="logit_bias")

    def to_map(self) -> dict[str, Any]:
        """Every option that differs from its default, as values that msgpack carries.

        Pairs travel as one flat list: a stage takes no list of lists.
        """
        values = {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}
        if self.logit_bias:
            values["logit_bias"] = [value for pair in self.logit_bias for value in pair]
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    def for_stages(self) -> dict[str, Any]:
        """What a stage must know: all but the stop strings, which only a client can read in text.

        Stages may lack a tokenizer that reads the model's files, and cannot know what is shown.
        """
        return replace(self, stop=()).to_map()

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> "Sampling":
        """Read `to_map`'s form; raises BadSampling on unknown options and wrong values."""
        unknown = sorted(str(name)[:40] for name in values if name not in _DEFAULTS)
        if unknown:
            raise BadSampling(
                f"Unknown sampling option {unknown[0]!r}.", f"Known are {', '.join(_DEFAULTS)}."
            )
        plain: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in values.items()
        }
        if "logit_bias" in plain:
            plain["logit_bias"] = _pairs_of(plain["logit_bias"])
        return cls(**plain)


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        need = f"it must be a whole number in [{low}, {high}]."
        raise BadSampling(f"{name} is {value!r:.40};", need, option=name)


def _check_number(
    name: str, value: object, low: float, high: float, *, open_below: bool = False
) -> None:
    fits = type(value) in (int, float) and low <= float(str(value)) <= high
    if not fits or (open_below and value == low):
        bracket = "(" if open_below else "["
        raise BadSampling(
            f"{name} is {value!r:.40};",
            f"it must be a number in {bracket}{low:g}, {high:g}].",
            option=name,
        )


def _pairs_of(flat: object) -> tuple[tuple[int, float], ...]:
    """The pairs of a flat list; raises BadSampling."""
    if not isinstance(flat, tuple) or len(flat) % 2:
        need = "as a list it must hold id, bias, id, bias and so on."
        raise BadSampling("logit_bias", need, option="logit_bias")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _check_bias(pairs: object) -> None:
    if not isinstance(pairs, tuple) or len(pairs) > MOST_BIASES:
        need = f"must hold at most {MOST_BIASES} ids."
        raise BadSampling("logit_bias", need, option="logit_bias")
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise BadSampling("logit_bias", "must hold (id, bias) pairs.", option="logit_bias")
        _check_whole("logit_bias", pair[0], 0, 1 << 31)
        _check_number("logit_bias", pair[1], -LARGEST_BIAS, LARGEST_BIAS)
    if len({token for token, _ in pairs}) < len(pairs):
        raise BadSampling("logit_bias", "names an id twice.", option="logit_bias")


def _check_stops(stops: object) -> None:
    if not isinstance(stops, tuple) or len(stops) > MOST_STOPS:
        raise BadSampling("stop", f"must be at most {MOST_STOPS} strings.", option="stop")
    if not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops):
        need = f"strings have 1 to {LONGEST_STOP} characters."
        raise BadSampling("stop", need, option="stop")


def _check_stop_ids(ids: object) -> None:
    if not isinstance(ids, tuple) or len(ids) > MOST_STOPS * 16:
        raise BadSampling("stop_ids", f"must be at most {MOST_STOPS * 16} token ids.")
    for each in ids:
        _check_whole("stop_ids", each, 0, 1 << 31)


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Sampling)}
GREEDY = Sampling()
