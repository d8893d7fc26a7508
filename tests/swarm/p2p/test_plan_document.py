"""Plan documents on their way: what another's name or another's author does to them."""

import asyncio
from dataclasses import dataclass

import pytest

from swarm.errors import PeerRefused
from swarm.p2p.channel import ANSWER_CAP
from swarm.p2p.plan_document import QUESTION, digest_of, fetch_document, read_own
from swarm.testing.memory_network import MemoryWorld, peer_named

HOLDER = peer_named("holder")


@dataclass(frozen=True)
class Signed:
    """A document that says no more than whose it is."""

    planner: str
    term: int


def fetched(data: bytes, digest: str) -> bytes:
    """What a peer gets that asks for a digest and is sent some data."""

    async def story() -> bytes:
        world = MemoryWorld()

        async def answer(_peer: str, payload: bytes) -> bytes:
            assert payload == digest.encode()
            return data

        world.channel(HOLDER).answer(QUESTION, answer)
        return await fetch_document(world.channel(peer_named("asker")), HOLDER, digest)

    return asyncio.run(story())


def test_the_document_of_a_digest_is_taken_from_whoever_has_it() -> None:
    assert fetched(b"a plan", digest_of(b"a plan")) == b"a plan"


@pytest.mark.parametrize("other", [b"", b"another plan"])
def test_another_document_than_the_one_named_is_refused(other: bytes) -> None:
    with pytest.raises(ValueError, match="not the one that was announced"):
        fetched(other, digest_of(b"a plan"))


def test_a_document_above_the_cap_of_answers_is_refused_whatever_its_name() -> None:
    data = bytes(ANSWER_CAP + 1)
    with pytest.raises(PeerRefused):
        fetched(data, digest_of(data))


def test_a_planner_offers_only_what_it_made_in_that_term() -> None:
    def read(_data: bytes) -> Signed:
        return Signed("planner", 3)

    assert read_own(b"", read, "planner", 3) == Signed("planner", 3)
    for planner, term in (("another", 3), ("planner", 2), ("planner", 4)):
        with pytest.raises(ValueError, match="another planner's"):
            read_own(b"", read, planner, term)
