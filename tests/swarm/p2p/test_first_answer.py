"""Of several peers the first answer counts, and nobody waits long for one that is gone."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from swarm.errors import PeerError, PeerLost, PeerRefused
from swarm.p2p.first_answer import first_answer

SECONDS = 20.0
LONG = 3600.0


class Asked:
    """Peers by name, and how it went with each."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.given_up: list[str] = []

    async def ask(self, name: str) -> str:
        self.order.append(name)
        match name:
            case "silent":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.given_up.append(name)
            case "gone":
                raise PeerLost("It is gone.")
            case "unwilling":
                raise PeerRefused("No.")
            case "broken":
                raise ZeroDivisionError
        return f"of {name}"

    async def first(self, *names: str, patience: float = LONG) -> tuple[str | None, list[str]]:
        answer, errors = await first_answer([partial(self.ask, each) for each in names], patience)
        return answer, [type(each).__name__ for each in errors]


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, SECONDS))


def test_who_answers_at_once_is_the_only_one_that_is_asked() -> None:
    asked = Asked()
    assert run(asked.first("quick", "other")) == ("of quick", [])
    assert asked.order == ["quick"]


def test_after_a_failure_the_next_one_is_asked_at_once() -> None:
    asked = Asked()
    found = run(asked.first("gone", "unwilling", "quick", "other"))
    assert found == ("of quick", ["PeerLost", "PeerRefused"])
    assert asked.order == ["gone", "unwilling", "quick"]


def test_while_one_is_silent_the_next_ones_are_asked_and_it_is_given_up() -> None:
    asked = Asked()
    found = run(asked.first("silent", "gone", "silent", "quick", patience=0.01))
    assert found == ("of quick", ["PeerLost"])
    assert asked.given_up == ["silent", "silent"]


def test_where_nobody_answers_the_errors_say_why() -> None:
    assert run(Asked().first()) == (None, [])
    assert run(Asked().first("gone", "unwilling")) == (None, ["PeerLost", "PeerRefused"])


def test_what_is_no_fault_of_a_peer_passes() -> None:
    asked = Asked()
    with pytest.raises(ZeroDivisionError):
        run(asked.first("silent", "broken", "quick", patience=0.01))
    assert asked.given_up == ["silent"]
    assert not issubclass(ZeroDivisionError, PeerError)
