"""A step waits for the sessions that will be here in a moment, and for no others."""

from node.worker.batching import MEMORY_STEPS, DecodeBatcher


def test_a_lone_session_never_waits() -> None:
    for share in (0.25, 0.5, 1.0):
        batcher = DecodeBatcher(share)
        batcher.ran(["a"], 0.01)
        assert batcher.target_size <= 1


def test_a_stage_with_half_of_the_layers_expects_half_of_the_sessions() -> None:
    batcher = DecodeBatcher(0.5)
    batcher.ran([f"s{number}" for number in range(16)], 0.01)
    assert batcher.target_size == 8
    whole, most = DecodeBatcher(1.0), DecodeBatcher(1.0, most_sessions=1)
    for each in (whole, most):
        each.ran(["a", "b", "c"], 0.01)
    assert (whole.target_size, most.target_size) == (3, 1)


def test_scattered_sessions_come_together_again() -> None:
    batcher = DecodeBatcher(0.5)
    steps = [[f"s{number}"] for number in range(16)]
    for _ in range(8):
        for step in steps:
            batcher.ran(step, 0.01)
        merged = max(batcher.target_size, len(steps[0]))
        names = [name for step in steps for name in step]
        steps = [names[at : at + merged] for at in range(0, len(names), merged)]
    assert len(steps) == 2


def test_a_session_that_left_or_fell_silent_is_not_waited_for() -> None:
    batcher = DecodeBatcher(1.0)
    batcher.ran(["a", "b", "c"], 0.01)
    batcher.left("b")
    assert batcher.target_size == 2
    for _ in range(MEMORY_STEPS):
        batcher.ran(["a"], 0.01)
    assert batcher.target_size == 1


def test_a_step_takes_its_part_of_those_that_came_together() -> None:
    batcher, names = DecodeBatcher(0.5), [f"s{number}" for number in range(16)]
    assert batcher.at_most(names) == 8
    batcher.ran(names[:8], 0.01)
    assert batcher.at_most(names[8:]) == 8
    assert batcher.at_most([]) == 4
    assert DecodeBatcher(1.0).at_most(names) == 16
    assert DecodeBatcher(0.5, most_sessions=3).at_most(names) == 3


def test_a_small_stage_remembers_sessions_for_a_whole_turn() -> None:
    batcher = DecodeBatcher(1 / 8)
    names = [f"s{number}" for number in range(16)]
    for at in range(0, 16, 2):
        batcher.ran(names[at : at + 2], 0.01)
    assert batcher.target_size == 2


def test_the_window_follows_the_time_of_a_step() -> None:
    batcher = DecodeBatcher(1.0)
    assert batcher.window_seconds == 0
    batcher.ran(["a"], 0.1)
    assert batcher.window_seconds == 0.05
    for _ in range(30):
        batcher.ran(["a"], 0.01)
    assert 0.005 < batcher.window_seconds < 0.006
