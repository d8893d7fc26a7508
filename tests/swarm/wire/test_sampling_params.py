"""Options out of range are refused by name, and travel as plain values."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadSampling
from swarm.wire.sampling_params import GREEDY, Sampling

GOOD = st.builds(
    Sampling,
    max_tokens=st.integers(1, 1 << 20),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1 << 20),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 1 << 31), st.floats(-100, 100), max_size=9).map(
        lambda biases: tuple(biases.items())
    ),
    seed=st.none() | st.integers(0, (1 << 63) - 1),
    top_logprobs=st.none() | st.integers(0, 20),
    grammar=st.just(())
    | st.tuples(st.sampled_from(["json_schema", "regex", "lark"]), st.text("aé{}", min_size=1)),
    stop=st.lists(st.text(min_size=1, max_size=9), max_size=4).map(tuple),
    stop_ids=st.lists(st.integers(0, 1 << 31), max_size=9).map(tuple),
)


@given(GOOD)
def test_options_survive_the_wire(sampling: Sampling) -> None:
    assert Sampling.from_map(msgpack.unpackb(msgpack.packb(sampling.to_map()))) == sampling


def test_defaults_are_greedy_and_travel_as_nothing() -> None:
    assert GREEDY.is_greedy
    assert GREEDY.to_map() == {}
    assert not Sampling(temperature=0.1).is_greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", None),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "often"),
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1.0, 1.0),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((token, 1.0) for token in range(301))),
        ("logit_bias", (1,)),
        ("logit_bias", {1: 1.0}),
        ("top_logprobs", -1),
        ("top_logprobs", 21),
        ("top_logprobs", True),
        ("grammar", "a*"),
        ("grammar", ("regex",)),
        ("grammar", ("glr", "a*")),
        ("grammar", ("regex", "")),
        ("grammar", ("regex", 5)),
        ("grammar", ("regex", "\ud800")),
        ("grammar", ("regex", "a" * 40_000)),
        ("seed", -1),
        ("seed", 1 << 63),
        ("stop", "word"),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop", (1,)),
        ("stop_ids", (-1,)),
        ("stop_ids", 3),
        ("stop_ids", ("a",)),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    for make in (lambda values: Sampling(**values), Sampling.from_map):
        with pytest.raises(BadSampling, match=name) as caught:
            make({name: value})
        assert caught.value.next_step
        assert caught.value.exit_code == 2


def test_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadSampling, match=r"'warmth'.*temperature"):
        Sampling.from_map({"warmth": 1})
    with pytest.raises(BadSampling):
        Sampling.from_map({3: 1})  # type: ignore[dict-item]


def test_a_bias_travels_as_values_that_a_stage_takes() -> None:
    sampling = Sampling(logit_bias=((5, 1.5), (7, -100)))
    assert sampling.to_map() == {"logit_bias": [5, 1.5, 7, -100]}
    with pytest.raises(BadSampling, match="logit_bias"):
        Sampling.from_map({"logit_bias": [5, 1.5, 7]})


def test_a_bias_of_an_id_that_the_model_lacks_is_refused() -> None:
    Sampling(logit_bias=((9, 1.0),)).check_ids(10)
    with pytest.raises(BadSampling, match="logit_bias names id 9"):
        Sampling(logit_bias=((9, 1.0),)).check_ids(9)
