"""Plan: its JSON comes back the same, and nonsense is a ValueError."""

from typing import Any

import pytest

from swarm.plan import Pipeline, Plan, Shard, Stage

PLAN = Plan(
    (
        Pipeline(
            (
                Stage(0, 3, (Shard("a/0", 2, 4), Shard("a/1", 2, 0))),
                Stage(3, 8, (Shard("b/0", 4, 4),)),
            )
        ),
        Pipeline((Stage(0, 8, (Shard("c/0", 4, 4),)),)),
    )
)


def test_a_plan_comes_back_from_its_json() -> None:
    again = Plan.from_json(PLAN.to_json())
    assert again == PLAN
    assert again.digest == PLAN.digest


def test_another_plan_has_another_digest() -> None:
    assert Plan(PLAN.pipelines[:1]).digest != PLAN.digest


def test_a_device_finds_its_stage_and_a_spare_finds_none() -> None:
    assert PLAN.stage_of("a/1") == PLAN.pipelines[0].stages[0]
    assert PLAN.stage_of("z/0") is None


def test_a_device_knows_its_machine_and_number() -> None:
    shard = Shard("machine/with/slashes/3", 1, 1)
    assert (shard.peer, shard.index) == ("machine/with/slashes", 3)


def test_a_stage_must_follow_the_one_before() -> None:
    with pytest.raises(ValueError, match="should start at 3"):
        Pipeline((Stage(0, 3, (Shard("a/0", 1, 1),)), Stage(4, 8, (Shard("b/0", 1, 1),))))


def test_a_device_serves_once() -> None:
    pipeline = Pipeline((Stage(0, 8, (Shard("a/0", 1, 1),)),))
    with pytest.raises(ValueError, match="at most once"):
        Plan((pipeline, pipeline))


@pytest.mark.parametrize("numbers", [(0, 0), (-1, 2), (2, -1)])
def test_a_shard_holds_something(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Shard("a/0", *numbers)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"pipelines": 1},
        {"pipelines": [{}]},
        {"pipelines": [{"stages": [{"start": 0, "end": 0, "shards": []}]}]},
        {"pipelines": [{"stages": [{"start": 0, "end": 2, "shards": [{"device": "a/0"}]}]}]},
        {"pipelines": [{"stages": [{"start": "x", "end": 2, "shards": []}]}]},
    ],
)
def test_nonsense_is_a_value_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Plan.from_json(data)
