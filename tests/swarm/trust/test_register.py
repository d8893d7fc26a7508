"""Register: the same entries amount to the same everywhere, and the founder has the last word."""

import itertools
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import RemoteProtocolError
from swarm.trust.identity import Identity
from swarm.trust.membership import pass_for
from swarm.trust.register import (
    BOUGHT,
    ENTRIES_CAP,
    REGISTER_CAP,
    SKEW_SECONDS,
    SPENT,
    Register,
    make_entry,
    read_entry,
)
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()
ONE, TWO = HOST.certified(as_delegate=True), HOST.certified(as_delegate=True)
MEMBER = ONE.certified()
TICKET = b"t" * 16


def register(*entries: bytes) -> Register:
    made = Register(SWARM)
    made.add(entries, NOW)
    return made


def spent(at: One, machine: One, when: float) -> bytes:
    return make_entry(SWARM, at.issuer, SPENT, machine.id, when, TICKET)


def test_a_revoked_machine_is_out_with_every_peer_and_machine_below_it() -> None:
    known = register(HOST.revoking(ONE))
    assert known.revokes(ONE.holding.chain)
    assert known.revokes(MEMBER.holding.chain)
    shown = pass_for(SWARM, MEMBER.holding, MEMBER.identity, Identity.throwaway().peer, NOW)
    assert known.revokes(shown.chain)
    assert not known.revokes(TWO.holding.chain)


def test_who_stands_lower_or_beside_revokes_nobody() -> None:
    known = register(ONE.revoking(HOST), ONE.revoking(TWO), ONE.revoking(ONE))
    for each in (HOST, ONE, TWO):
        assert not known.revokes(each.holding.chain)
    assert read_entry(SWARM, make_entry(SWARM, MEMBER.issuer, 1, TWO.id, NOW)) is None


def test_what_a_revoked_delegate_says_counts_no_more_in_whatever_order_it_comes() -> None:
    member = TWO.certified()
    entries = [HOST.revoking(ONE, NOW - 5), ONE.revoking(member, NOW - 9), ONE.revoking(MEMBER)]
    outcomes = set()
    for order in itertools.permutations(entries):
        known = register(*order)
        outcomes.add((known.revokes(member.holding.chain), known.digest, known.tickets_since))
    assert outcomes == {(False, register(*entries).digest, int(NOW - 5))}


def test_tickets_made_before_a_revocation_are_void() -> None:
    assert register().tickets_since == 0
    assert register(HOST.revoking(ONE), ONE.revoking(MEMBER, NOW - 9)).tickets_since == int(NOW)


def test_of_two_machines_that_spent_one_ticket_the_earlier_stays() -> None:
    early, late = ONE.certified(), TWO.certified()
    entries = spent(TWO, late, NOW - 1), spent(ONE, early, NOW - 2)
    for order in (entries, entries[::-1]):
        known = register(*order)
        assert known._spent[TICKET] == early.id
        assert not known.revokes(early.holding.chain)
        assert known.revokes(late.holding.chain)


def test_an_entry_from_the_future_waits() -> None:
    entry = HOST.revoking(ONE, NOW + SKEW_SECONDS + 5)
    known = register(entry)
    assert not known.revokes(ONE.holding.chain)
    assert known.add([entry], NOW + 10)
    assert known.revokes(ONE.holding.chain)


def test_a_delegate_that_floods_crowds_out_nobody_above_it() -> None:
    flood = [ONE.revoking(One(), NOW - n) for n in range(ENTRIES_CAP + 10)]
    known = register(*flood)
    assert len(known._entries) == ENTRIES_CAP
    assert known.add([HOST.revoking(ONE)], NOW)
    assert known.revokes(ONE.holding.chain)
    assert len(known.to_bytes()) < REGISTER_CAP
    assert not known.add(flood, NOW), "what was dropped is no news"


def test_what_tickets_bought_crowds_out_no_revocation_and_the_latest_of_it_stays() -> None:
    flood = [
        make_entry(SWARM, HOST.issuer, BOUGHT, One().id, NOW - n, TICKET)
        for n in range(ENTRIES_CAP + 10)
    ]
    known = register(*flood)
    assert known.add([TWO.revoking(MEMBER), ONE.revoking(MEMBER)], NOW)
    assert known.revokes(MEMBER.holding.chain)
    kept = [each.at for each in known._entries.values() if each.kind == BOUGHT]
    assert kept == [int(NOW) - n for n in range(ENTRIES_CAP - 2)]


def test_what_is_known_outlives_a_restart_and_joins_what_another_program_wrote(
    tmp_path: Path,
) -> None:
    path = tmp_path / "register"
    first, second = Register(SWARM, path), Register(SWARM, path)
    first.add([HOST.revoking(ONE)], NOW)
    first.save()
    second.add([HOST.revoking(TWO)], NOW)
    second.save()
    known = Register(SWARM, path)
    assert known.revokes(ONE.holding.chain)
    assert known.revokes(TWO.holding.chain)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"damaged")
    assert Register(SWARM, path).digest == register().digest


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400) | st.recursive(st.binary() | st.integers() | st.text(), st.lists))
def test_no_register_of_a_stranger_says_anything(given: object) -> None:
    known = register()
    data = given if isinstance(given, bytes) else b""
    try:
        data = data or msgpack.packb(given)
    except (OverflowError, ValueError):
        return
    try:
        assert not known.add_all(data, NOW)
    except RemoteProtocolError:
        return


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_spoils_an_entry(at: int, change: int) -> None:
    data = bytearray(ENTRY)
    data[at % len(data)] ^= change
    assert read_entry(SWARM, bytes(data)) is None


ENTRY = HOST.revoking(ONE)


def test_a_register_that_is_too_long_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        register().add_all(bytes(REGISTER_CAP + 1), NOW)
