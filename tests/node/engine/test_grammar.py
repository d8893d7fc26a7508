"""Answers follow their grammar whatever the model would say, and end only where it allows."""

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.grammar import (
    MOST_COMPILED,
    SECONDS_AT_ONCE,
    SECONDS_EACH,
    GrammarCompiler,
    GrammarState,
)
from node.engine.sampler import Sampler
from swarm.checkpoint.folder import find_model
from swarm.errors import EngineError
from swarm.model_spec import BUILT_IN
from swarm.wire.grammars import Grammar
from swarm.wire.sampling_params import Sampling
from tests.whole.reference_model import ids_of, text_of

FOLDER = find_model(BUILT_IN)
VOCAB, END = 512, 0
COMPILER = GrammarCompiler(FOLDER, VOCAB)
WEEKDAY = r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day( [0-9]{1,2})?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22, 333]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
REGEX: Grammar = ("regex", WEEKDAY)
JSON: Grammar = ("json_schema", json.dumps(SCHEMA))
LARK: Grammar = ("lark", 'start: "a" more?\nmore: "b" "c"*')


def logits_for(position: int, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(1000 * seed + position))


def sampler_of(grammar: Grammar, known: list[int] | None = None, **options: Any) -> Sampler:
    values: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "stop_ids": (END,)}
    sampling = Sampling(grammar=grammar, **(values | options))
    own = known or []
    return Sampler(sampling, [5, *own], len(own), grammar=COMPILER.state_of(sampling))


def answered(sampler: Sampler, seed: int = 0) -> tuple[list[int], str]:
    """All ids from where a sampler stands to its end."""
    finish = ""
    while not finish:
        place = len(sampler.ids)
        _, finish = sampler.next(place, logits_for(place, seed))
    return sampler.ids[1:], finish


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_every_answer_matches_its_grammar(seed: int) -> None:
    ids, finish = answered(sampler_of(REGEX), seed)
    assert finish == "stop"
    assert re.fullmatch(WEEKDAY, text_of(ids))
    ids, finish = answered(sampler_of(JSON), seed)
    assert finish == "stop"
    value = json.loads(text_of(ids))
    assert type(value["ok"]) is bool
    assert value["n"] in (1, 22, 333)
    assert re.fullmatch("a(bc*)?", text_of(answered(sampler_of(LARK), seed)[0]))


def test_the_end_may_come_only_where_the_grammar_accepts() -> None:
    eager = torch.zeros(VOCAB)
    eager[END] = 100.0
    sampler = sampler_of(("regex", "(ab)+"), temperature=0.0)
    (a,), (b,) = ids_of("a")[-1:], ids_of("b")[-1:]
    assert [sampler.next(1 + n, eager) for n in range(3)] == [(a, ""), (b, ""), (END, "stop")]


def test_an_end_that_is_none_of_the_sessions_is_not_said() -> None:
    eager = torch.zeros(VOCAB)
    eager[END] = 100.0
    sampler = sampler_of(("regex", "a+"), temperature=0.0, stop_ids=(), max_tokens=4)
    ids = [sampler.next(1 + n, eager) for n in range(4)]
    assert END not in [token for token, _ in ids]
    assert ids[-1][1] == "length"


def test_an_answer_that_is_complete_ends_without_a_further_step() -> None:
    ids, finish = answered(sampler_of(("regex", "ab"), stop_ids=()))
    assert (text_of(ids), finish) == ("ab", "stop")


@pytest.mark.parametrize("grammar", [REGEX, JSON, LARK], ids=lambda grammar: grammar[0])
def test_a_replay_and_a_way_back_go_on_with_the_same_ids(grammar: Grammar) -> None:
    whole, finish = answered(sampler_of(grammar))
    for kept in range(len(whole)):
        assert answered(sampler_of(grammar, whole[:kept])) == (whole, finish)
    for kept in range(1, len(whole) + 1):
        sampler = sampler_of(grammar)
        assert answered(sampler) == (whole, finish)
        sampler.rollback(kept)
        assert answered(sampler) == (whole, finish)


@pytest.mark.parametrize("grammar", [REGEX, JSON, LARK], ids=lambda grammar: grammar[0])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_guesses_change_no_id(grammar: Grammar, data: st.DataObject) -> None:
    whole, finish = answered(sampler_of(grammar))
    sampler = sampler_of(grammar)
    told: list[int] = []
    ended = ""
    while not ended:
        right = whole[len(told) :][: data.draw(st.integers(0, 3))]
        drafts = [*right, *data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=2))]
        first = 1 + len(told)
        rows = torch.stack([logits_for(first + n) for n in range(len(drafts) + 1)])
        fresh, ended = sampler.verify(first, rows, drafts)
        told += fresh
    assert (told, ended) == (whole, finish)


def test_what_a_grammar_forces_is_guessed_and_what_it_forbids_is_not() -> None:
    forced = sampler_of(("regex", "abcabc|x"))
    (a, b, c) = (ids_of(each)[-1] for each in "abc")
    scores = torch.zeros(VOCAB)
    scores[a] = 100.0
    assert forced.next(1, scores) == (a, "")
    state = COMPILER.state_of(Sampling(grammar=("regex", "a[bc]c?"), stop_ids=(END,)))
    assert state
    state.note([a])
    assert state.drafts([b, c, a]) == [b, c]
    assert state.drafts([a, b]) == []


def test_options_apply_to_what_the_grammar_leaves() -> None:
    (a, b, c) = (ids_of(each)[-1] for each in "abc")
    sampler = sampler_of(("regex", "[ab]"), temperature=0.0, logit_bias=((b, 3.0), (c, 100.0)))
    assert sampler.next(1, torch.zeros(VOCAB)) == (b, "stop")
    assert a != b


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (("regex", "("), "unclosed group"),
        (("lark", "start: nothing"), "unknown name"),
        (("json_schema", '{"type": "nonsense"}'), "Invalid type"),
        (("json_schema", "[]"), "no.* JSON object|not a JSON object"),
        (("json_schema", '{} }, {"regex": "a"'), "Extra data"),
        (("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000), "too deeply|recursion"),
    ],
)
def test_a_wrong_grammar_is_refused_each_time_it_comes(grammar: Grammar, why: str) -> None:
    for _ in range(2):
        with pytest.raises(EngineError, match=why):
            COMPILER.compile(grammar)


def test_one_that_grows_beyond_its_bounds_fails_its_session_with_the_reason() -> None:
    state = COMPILER.state_of(Sampling(grammar=("lark", 'start: ("a"{0,1000}){0,1000}')))
    assert state
    with pytest.raises(EngineError, match=r"grammar fails: .*max is"):
        say(state, 99 * ids_of("a")[-1:])


def say(state: GrammarState, ids: list[int]) -> None:
    for token in ids:
        state.apply(np.zeros(VOCAB, np.float32))
        state.note([token])


def masks_with(seconds: float) -> int:
    """How many masks, of at most 200, a session gets that take so long each."""
    matcher = COMPILER.compile(("regex", "a*")).deep_copy()
    now = count(0.0, seconds)
    state = GrammarState(matcher, (), (), lambda: next(now))
    for done in range(200):
        try:
            state.apply(np.zeros(VOCAB, np.float32))
        except EngineError as error:
            if "takes too long" in str(error):
                return done
            raise
    return 200


def test_one_that_takes_too_long_for_each_id_fails_its_session() -> None:
    assert masks_with(SECONDS_EACH) == 200
    assert masks_with(SECONDS_EACH + SECONDS_AT_ONCE / 100.5) == 100
    assert masks_with(SECONDS_EACH + 2 * SECONDS_AT_ONCE) == 0


def test_ids_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(EngineError, match="grammar fails"):
        sampler_of(REGEX, ids_of("x")[-1:])


def test_a_model_without_a_tokenizer_file_refuses_grammars(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        GrammarCompiler(tmp_path, VOCAB).compile(REGEX)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="cannot be read"):
        GrammarCompiler(tmp_path, VOCAB).compile(REGEX)


def test_scores_beyond_the_tokenizers_ids_are_never_drawn() -> None:
    compiler = GrammarCompiler(FOLDER, VOCAB + 90)
    state = compiler.state_of(Sampling(grammar=("regex", "a"), stop_ids=(END, 10**6)))
    scores = np.zeros(VOCAB + 90, np.float32)
    assert state
    state.apply(scores)
    assert np.flatnonzero(np.isfinite(scores)).tolist() == ids_of("a")[-1:]


def test_only_so_many_grammars_are_kept() -> None:
    compiler = GrammarCompiler(FOLDER, VOCAB)
    first = compiler.compile(("regex", "0"))
    for number in range(1, MOST_COMPILED):
        compiler.compile(("regex", str(number)))
    assert compiler.compile(("regex", "0")) is first
    compiler.compile(("regex", "one more"))
    assert compiler.compile(("regex", "0")) is first
    assert len(compiler._compiled) == MOST_COMPILED
