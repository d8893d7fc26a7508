"""When a part of the plan counts as broken, by what its peers advertise."""

from dataclasses import replace

import pytest

from node.control.promises import FAILING_SECONDS, SERVE_SECONDS, Promises
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Advert, Member, StageAdvert, Trouble
from tests.node.memberships import SPEC, capability_of

FIRST = Stage(0, 4, (Shard("anna/0", 8, 8),))
LAST = Stage(4, 8, (Shard("bert/0", 4, 4), Shard("carl/0", 4, 4)))
PLAN = Plan((Pipeline((FIRST, LAST)),))
PEERS = {name: capability_of() for name in ("anna", "bert", "carl")}


def advert_of(stage: Stage, step_seconds: float = 0.01) -> Advert:
    members = [Member(shard.peer, shard.index, shard.kv, shard.mlp) for shard in stage.shards]
    return Advert(
        SPEC.digest, [StageAdvert(stage.start, stage.end, members, step_seconds, 9, 0)], 1
    )


SERVED = {"anna": advert_of(FIRST), "bert": advert_of(LAST)}
TROUBLE = Trouble(0, 0, 4, 2, "it is cut off")


def in_trouble(trouble: Trouble, peer: str = "anna") -> dict[str, Advert]:
    rest = {name: advert for name, advert in SERVED.items() if name != peer}
    return rest | {peer: Advert(SPEC.digest, [], 1, troubles=[trouble])}


def broken(
    promises: Promises, adverts: dict[str, Advert], now: float
) -> list[tuple[set[str], str]]:
    found = promises.broken(PLAN, PEERS, adverts, now)
    return [(set(each.peers), each.cause) for each in found]


def test_what_is_served_as_planned_is_kept() -> None:
    promises = Promises(SPEC)
    assert broken(promises, SERVED, 0.0) == []
    assert broken(promises, SERVED, 1000.0) == []
    assert promises.keepers == {"anna", "bert", "carl"}


@pytest.mark.parametrize(
    ("failures", "at"), [(0, 0.0), (1, FAILING_SECONDS), (2, 0.0)], ids=["halted", "once", "twice"]
)
def test_a_device_that_says_that_it_fails_is_believed(failures: int, at: float) -> None:
    promises, told = Promises(SPEC), in_trouble(replace(TROUBLE, failures=failures))
    found = [each for now in (0.0, at) for each in broken(promises, told, now)]
    assert found == [({"anna"}, "it is cut off")]


def test_a_failure_counts_once_and_the_next_one_again() -> None:
    promises = Promises(SPEC)
    assert broken(promises, in_trouble(TROUBLE), 0.0)
    assert not broken(promises, in_trouble(TROUBLE), 1.0)
    assert broken(promises, in_trouble(replace(TROUBLE, failures=3)), 2.0)


def test_a_single_failure_is_tried_again_first() -> None:
    promises = Promises(SPEC)
    assert not broken(promises, in_trouble(replace(TROUBLE, failures=1)), 0.0)
    assert not broken(promises, SERVED, 5.0)


def test_trouble_with_another_part_than_planned_says_nothing_of_this_one() -> None:
    promises = Promises(SPEC)
    assert not broken(promises, in_trouble(replace(TROUBLE, end=5)), 0.0)
    assert not broken(promises, in_trouble(replace(TROUBLE, device=1)), 0.0)


def test_only_the_rank_that_fails_is_blamed_for_a_group() -> None:
    promises = Promises(SPEC)
    adverts = {"anna": SERVED["anna"], "carl": Advert(SPEC.digest, [], 1)}
    adverts["carl"] = replace(adverts["carl"], troubles=[Trouble(0, 4, 8, 2, "out of memory")])
    assert broken(promises, adverts, 0.0) == [({"carl"}, "out of memory")]


NOT_FORMED = Trouble(0, 4, 8, 2, "its group was not formed", blamed="carl")


def test_a_leader_whose_group_lacks_a_rank_names_it_and_is_spared() -> None:
    promises = Promises(SPEC)
    assert broken(promises, in_trouble(NOT_FORMED, "bert"), 0.0) == [({"carl"}, NOT_FORMED.cause)]
    again = replace(NOT_FORMED, failures=3)
    assert not broken(promises, in_trouble(again, "bert"), 1.0), "that is known"


def test_a_leader_that_names_others_again_is_held_to_it_too() -> None:
    promises = Promises(SPEC)
    broken(promises, in_trouble(NOT_FORMED, "bert"), 0.0)
    told = replace(NOT_FORMED, cause="another one")
    assert broken(promises, in_trouble(told, "bert"), 1.0) == [({"bert", "carl"}, "another one")]
    promises = Promises(SPEC)
    broken(promises, in_trouble(NOT_FORMED, "bert"), 0.0)
    broken(promises, SERVED, 1.0)  # it has kept its word since
    assert broken(promises, in_trouble(NOT_FORMED, "bert"), 2.0) == [({"carl"}, NOT_FORMED.cause)]


def test_two_that_name_each_other_are_both_held_to_it() -> None:
    adverts = in_trouble(NOT_FORMED, "bert")
    adverts["carl"] = Advert(SPEC.digest, [], 1, troubles=[replace(NOT_FORMED, blamed="bert")])
    assert broken(Promises(SPEC), adverts, 0.0) == [({"bert", "carl"}, NOT_FORMED.cause)]


@pytest.mark.parametrize("blamed", ["anna", "bert", "", "nobody"])
def test_only_a_rank_of_the_same_stage_can_be_named(blamed: str) -> None:
    told = in_trouble(replace(NOT_FORMED, blamed=blamed), "bert")
    assert broken(Promises(SPEC), told, 0.0) == [({"bert"}, NOT_FORMED.cause)]


def test_who_says_nothing_has_his_time_and_all_ranks_are_blamed() -> None:
    promises = Promises(SPEC)
    adverts = {"anna": SERVED["anna"]}
    assert not broken(promises, adverts, 0.0)
    assert not broken(promises, adverts, SERVE_SECONDS)
    cause = "layers 4-7 were not served in time"
    assert broken(promises, adverts, SERVE_SECONDS + 2) == [({"bert", "carl"}, cause)]


def test_a_device_far_slower_than_its_own_figures_does_not_keep_its_promise() -> None:
    promises = Promises(SPEC)
    slow = SERVED | {"anna": advert_of(FIRST, step_seconds=2.0)}
    assert broken(promises, slow, 0.0) == [
        ({"anna"}, "layers 0-3 are far slower than its figures say")
    ]
    assert promises.keepers == {"bert", "carl"}
    assert not broken(promises, slow, 1.0)  # once is enough


def test_a_group_is_not_held_against_what_one_device_could_do() -> None:
    slow = SERVED | {"bert": advert_of(LAST, step_seconds=2.0)}
    assert not broken(Promises(SPEC), slow, 0.0)
