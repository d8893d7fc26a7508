"""A step waits for the sessions that will be here in a moment, and for no others."""

from node.worker.batching import MEMORY_STEPS, Company


def test_a_lone_session_never_waits() -> None:
    for share in (0.25, 0.5, 1.0):
        company = Company(share)
        company.ran(["a"], 0.01)
        assert company.wanted <= 1


def test_a_stage_with_half_of_the_layers_expects_half_of_the_sessions() -> None:
    company = Company(0.5)
    company.ran([f"s{number}" for number in range(16)], 0.01)
    assert company.wanted == 8
    whole, most = Company(1.0), Company(1.0, most_sessions=1)
    for each in (whole, most):
        each.ran(["a", "b", "c"], 0.01)
    assert (whole.wanted, most.wanted) == (3, 1)


def test_scattered_sessions_come_together_again() -> None:
    company = Company(0.5)
    steps = [[f"s{number}"] for number in range(16)]
    for _ in range(8):
        for step in steps:
            company.ran(step, 0.01)
        merged = max(company.wanted, len(steps[0]))
        names = [name for step in steps for name in step]
        steps = [names[at : at + merged] for at in range(0, len(names), merged)]
    assert len(steps) == 2


def test_a_session_that_left_or_fell_silent_is_not_waited_for() -> None:
    company = Company(1.0)
    company.ran(["a", "b", "c"], 0.01)
    company.left("b")
    assert company.wanted == 2
    for _ in range(MEMORY_STEPS):
        company.ran(["a"], 0.01)
    assert company.wanted == 1


def test_a_step_takes_its_part_of_those_that_came_together() -> None:
    company, names = Company(0.5), [f"s{number}" for number in range(16)]
    assert company.at_most(names) == 8
    company.ran(names[:8], 0.01)
    assert company.at_most(names[8:]) == 8
    assert company.at_most([]) == 4
    assert Company(1.0).at_most(names) == 16
    assert Company(0.5, most_sessions=3).at_most(names) == 3


def test_a_small_stage_remembers_sessions_for_a_whole_turn() -> None:
    company = Company(1 / 8)
    names = [f"s{number}" for number in range(16)]
    for at in range(0, 16, 2):
        company.ran(names[at : at + 2], 0.01)
    assert company.wanted == 2


def test_patience_follows_the_time_of_a_step() -> None:
    company = Company(1.0)
    assert company.patience_seconds == 0
    company.ran(["a"], 0.1)
    assert company.patience_seconds == 0.05
    for _ in range(30):
        company.ran(["a"], 0.01)
    assert 0.005 < company.patience_seconds < 0.006
