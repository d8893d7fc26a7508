"""Passes: whose peer is which machine's outlives a restart, and nobody crowds out the others."""

from pathlib import Path

import msgpack
import pytest

from swarm.trust.identity import Identity
from swarm.trust.membership import Pass, pass_for
from swarm.trust.passes import KEPT_OF_MACHINE, MACHINE_CAP, PASSES_CAP, Passes
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()


def shown(machine: One, now: float = NOW) -> Pass:
    """What a new peer of a machine shows."""
    return pass_for(SWARM, machine.holding, machine.identity, Identity.throwaway().peer, now)


def noted(passes: Passes, *found: Pass) -> Passes:
    for each in found:
        passes.note(each)
    return passes


def test_a_machine_is_found_by_each_of_its_peers_and_by_itself() -> None:
    machine = HOST.certified()
    found = shown(machine)
    passes = noted(Passes(SWARM), found)
    assert passes.machine_named(found.chain.subject) == machine.id
    assert passes.machine_named(machine.id) == machine.id
    assert passes.machine_named(HOST.id) == ""


def test_it_is_known_after_a_restart_and_to_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "passes"
    one, other = Passes(SWARM, path), Passes(SWARM, path)
    first, second = shown(HOST.certified()), shown(HOST.certified())
    for passes, found in ((one, first), (other, second)):
        noted(passes, found)
        passes.write(passes.take_news())
        assert passes.take_news() == (), "nothing is new"
    again = Passes(SWARM, path)
    for found in (first, second):
        assert again.get(found.chain.subject) == found
    assert list(again.latest_first()) == [], "nobody need be there any more"
    assert path.stat().st_mode & 0o777 == 0o600
    assert again.take_news() == ()
    noted(again, first)
    assert list(again.latest_first()) == [first]
    assert again.take_news() == (), "the same once more is no news"


def test_a_machine_that_makes_many_ids_loses_its_own_oldest() -> None:
    greedy, other = HOST.certified(), shown(HOST.certified())
    many = [shown(greedy) for _ in range(MACHINE_CAP + 3)]
    passes = noted(Passes(SWARM), other, *many)
    assert passes.get(other.chain.subject) == other
    assert [passes.get(each.chain.subject) for each in many[:3]] == [None] * 3
    assert len(list(passes.latest_first())) == MACHINE_CAP + 1


def test_there_is_a_bound_for_all_together_and_one_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.trust.passes.PASSES_CAP", 3)
    assert PASSES_CAP > 1000
    found = [shown(HOST.certified()) for _ in range(4)]
    passes = noted(Passes(SWARM), *found)
    assert list(passes.latest_first()) == found[:0:-1]
    monkeypatch.undo()
    greedy = HOST.certified()
    many = [shown(greedy) for _ in range(KEPT_OF_MACHINE + 2)]
    kept = noted(Passes(SWARM, tmp_path / "passes"), *many)
    kept.write(kept.take_news())
    again = Passes(SWARM, tmp_path / "passes")
    found = [each for each in many if again.get(each.chain.subject)]
    assert found == many[2:]


@pytest.mark.parametrize(
    "content", [b"", b"damaged", msgpack.packb({"a": 1}), msgpack.packb([1, b"no pass", None])]
)
def test_a_file_that_is_damaged_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passes"
    path.write_bytes(content)
    assert len(Passes(SWARM, path)._seen) == 0
