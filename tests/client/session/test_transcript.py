"""Transcripts: ids in order, once each, until the end."""

import random
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from client.session.transcript import Transcript


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_any_order_and_any_repetition_gives_the_same_ids(seed: int, count: int) -> None:
    chance = random.Random(seed)
    transcript = Transcript((1, 2, 3), count)
    frames = [(3 + at, [100 + at]) for at in range(count)]
    frames += chance.choices(frames, k=count)
    chance.shuffle(frames)
    fresh = [token for at, ids in frames for token in transcript.add(at, ids, "")]
    assert fresh == transcript.generated == list(range(100, 100 + count))
    assert transcript.finish == "length"
    assert transcript.ids == [1, 2, 3, *fresh]


def test_the_first_stop_id_ends_it_and_is_kept() -> None:
    transcript = Transcript((1,), 9, (7,))
    assert transcript.add(1, [5, 7, 8], "") == [5, 7]
    assert transcript.finish == "stop"
    assert transcript.add(3, [8], "") == []


def test_the_last_stage_may_end_it_earlier() -> None:
    transcript = Transcript((1,), 9)
    transcript.add(1, [5, 6], "stop")
    assert (transcript.generated, transcript.finish) == ([5, 6], "stop")


def test_an_end_without_ids_counts_only_at_its_place() -> None:
    transcript = Transcript((1,), 9)
    transcript.add(2, [], "stop")
    assert transcript.finish == ""
    transcript.add(1, [], "length")
    assert transcript.finish == "length"


def test_ids_that_came_too_early_are_forgotten_with_their_epoch() -> None:
    transcript = Transcript((1,), 9)
    transcript.add(2, [99], "")
    transcript.begin_epoch()
    transcript.add(1, [5], "")
    assert transcript.generated == [5]


def test_new_ids_are_read_once() -> None:
    transcript = Transcript((1,), 9)
    transcript.add(1, [5], "")
    assert list(transcript.unread()) == [5]
    transcript.add(2, [6, 7], "")
    assert list(transcript.unread()) == [6, 7]
    assert list(transcript.unread()) == []


def test_stopping_drops_what_nobody_has_read() -> None:
    transcript = Transcript((1,), 9)
    transcript.add(1, [5, 6, 7], "")
    assert list(islice(transcript.unread(), 2)) == [5, 6]
    transcript.stop()
    assert (transcript.generated, transcript.finish) == ([5, 6], "stop")
