"""UnprovedStreams: silent strangers take places from each other only."""

from contextlib import ExitStack
from functools import partial

import pytest

from swarm.errors import RemoteProtocolError
from swarm.p2p.unproved_streams import UnprovedStreams


def test_a_peer_has_two_places_and_gets_them_back() -> None:
    places = UnprovedStreams(cap=4, per_peer=2)
    with places.place("eve", lambda: None), places.place("eve", lambda: None):
        with pytest.raises(RemoteProtocolError, match="proof"), places.place("eve", lambda: None):
            pass
        with places.place("other", lambda: None):
            assert len(places) == 3
    assert len(places) == 0


def test_a_newcomer_ends_the_oldest_of_the_largest_crowd() -> None:
    places = UnprovedStreams(cap=4, per_peer=2)
    ended: list[int] = []
    with ExitStack() as stack:
        for number, peer in enumerate(["honest", "eve", "eve", "other", "newcomer", "last"]):
            stack.enter_context(places.place(peer, partial(ended.append, number)))
        assert ended == [1, 0]
        assert len(places) == 4
    assert len(places) == 0
