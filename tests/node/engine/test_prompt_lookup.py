"""What followed the same ids earlier is guessed again."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.prompt_lookup import LONGEST_NGRAM, NgramProposer


def propose(ids: list[int], most: int = 8) -> list[int]:
    return NgramProposer().propose(ids, most)


def test_what_followed_the_same_ids_is_guessed() -> None:
    assert propose([1, 2, 3, 4, 5, 9, 1, 2, 3], 3) == [4, 5, 9]


def test_a_longer_match_goes_before_a_later_one() -> None:
    assert propose([1, 2, 3, 7, 9, 3, 8, 1, 2, 3], 1) == [7]


def test_among_equal_matches_the_latest_counts() -> None:
    assert propose([5, 1, 5, 2, 5], 1) == [2]


def test_a_repeating_text_runs_on_into_its_own_guesses() -> None:
    assert propose([7, 7], 4) == [7, 7, 7, 7]
    assert propose([1, 2, 3, 1, 2, 3], 5) == [1, 2, 3, 1, 2]


def test_ids_that_are_new_give_no_guess() -> None:
    assert propose([]) == []
    assert propose([1, 2, 3]) == []


def reference(ids: list[int], most: int) -> list[int]:
    """The plain search."""
    for length in range(min(LONGEST_NGRAM, len(ids)), 0, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                whole = list(ids)
                for place in range(most):
                    whole.append(whole[start + length + place])
                return whole[len(ids) :]
    return []


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(1, 30)), st.integers(1, 8))
def test_it_finds_what_a_plain_search_finds_however_the_ids_grow(
    ids: list[int], cuts: list[int], most: int
) -> None:
    proposer = NgramProposer()
    for cut in cuts:  # back and forth: ids are also rolled back
        proposer.propose(ids[:cut], most)
    assert proposer.propose(ids, most) == reference(ids, most)
