"""Members: who may speak with us, and what tickets buy: each once, none after a revocation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import BadInvite, PeerRefused
from swarm.trust.identity import Identity
from swarm.trust.members import MACHINES_OF_A_TICKET, Machine, Members
from swarm.trust.membership import holding_of, pass_for
from swarm.trust.register import Register
from swarm.trust.tickets import AS_DELEGATE, ONCE, ask_with, read_request, sell
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()
DELEGATE = HOST.certified(as_delegate=True)
DAY = 86400.0


def members(one: One, register: Register | None = None, now: float = NOW) -> Members:
    """One machine's node."""
    machine = Machine(one.identity, one.holding)
    known = register or Register(SWARM)
    return Members(SWARM, Identity.throwaway().peer, machine, known, clock=lambda: now)


def ticket(flags: int = 0, *, by: One = HOST, made: float = NOW, until: float = NOW + DAY) -> bytes:
    return sell(SWARM, by.issuer, made, until, flags)


def bought(at: Members, with_ticket: bytes, machine: One) -> One:
    machine.held = holding_of(SWARM, at.redeem(ask_with(SWARM, with_ticket, machine.id)))
    return machine


def test_a_ticket_buys_a_membership_at_any_delegate_and_its_holder_gets_in() -> None:
    for delegate in (HOST, DELEGATE):
        machine = bought(members(delegate), ticket(), One())
        assert not machine.holding.is_delegate
        node = members(machine)
        assert members(HOST).problem_of(node._own.chain.subject, node.own_pass) == ""


def test_a_ticket_for_one_machine_serves_that_one_again_and_no_other() -> None:
    at, sold, first = members(HOST), ticket(ONCE), One()
    bought(at, sold, first)
    bought(at, sold, first)  # its answer was lost
    with pytest.raises(PeerRefused, match="was for one machine, and another one has used it"):
        bought(at, sold, One())


def test_a_delegate_knows_that_another_one_has_spent_a_ticket_once_they_have_talked() -> None:
    one, other, sold = members(HOST), members(DELEGATE), ticket(ONCE)
    bought(one, sold, One())
    other.hear_register(one.register.to_bytes())
    with pytest.raises(PeerRefused, match="another one has used it"):
        bought(other, sold, One())


def test_two_delegates_that_cannot_talk_may_both_sell_and_one_machine_is_out_when_they_do() -> None:
    one, other, sold = members(HOST, now=NOW + 1), members(DELEGATE, now=NOW + 2), ticket(ONCE)
    early, late = bought(one, sold, One()), bought(other, sold, One())
    for each, more in ((one, other), (other, one)):
        each.hear_register(more.register.to_bytes())
    for each in (one, other):
        assert not each.register.revokes(early.holding.chain)
        assert each.register.revokes(late.holding.chain)


def test_a_revoked_machine_comes_back_with_nothing_that_it_has_under_any_id() -> None:
    at, sold, machine = members(HOST, now=NOW + 5), ticket(), One()
    bought(at, sold, machine)
    node = members(machine)
    at.revoke(machine.id)
    assert "revoked" in at.problem_of(node._own.chain.subject, node.own_pass)
    fresh = pass_for(SWARM, machine.holding, machine.identity, Identity.throwaway().peer, NOW)
    assert "revoked" in at.problem_of(fresh.chain.subject, fresh.data), "another id of its own"
    for again in (machine, One()):  # with the old invite, as itself and as a new machine
        with pytest.raises(PeerRefused, match="revoked"):
            bought(at, sold, again)
    with pytest.raises(PeerRefused, match="void"):
        bought(at, ticket(ONCE), One())  # any that was made before: it may have seen it
    with pytest.raises(PeerRefused, match="This machine is revoked"):
        bought(at, ticket(made=NOW + 9), machine)
    assert bought(at, ticket(made=NOW + 9), One()), "a new invite, for another machine"


def test_a_revoked_machine_knows_it_when_it_hears_so() -> None:
    at, machine = members(HOST), HOST.certified()
    node = members(machine)
    node.require_member()
    at.revoke(machine.id)
    node.hear_register(at.register.to_bytes())
    with pytest.raises(BadInvite, match="This machine was revoked"):
        node.require_member()


def test_a_peer_shows_its_own_pass_and_no_others() -> None:
    node, at = members(HOST.certified()), members(HOST)
    assert "no certificate" in at.problem_of(Identity.throwaway().peer, node.own_pass)
    assert "no certificate" in at.problem_of(node._own.chain.subject, b"")
    late = members(HOST, now=NOW + 91 * DAY)
    assert "expired" in late.problem_of(node._own.chain.subject, node.own_pass)


def test_a_pass_is_renewed_long_before_it_ends_and_not_all_the_time() -> None:
    now = [NOW]
    one = HOST.certified()
    machine = Machine(one.identity, one.holding)
    node = Members(SWARM, Identity.throwaway().peer, machine, Register(SWARM), clock=lambda: now[0])
    at = Members(
        SWARM,
        Identity.throwaway().peer,
        Machine(HOST.identity, HOST.holding),
        Register(SWARM),
        clock=lambda: now[0],
    )
    shown = []
    for day in range(0, 365, 5):
        now[0] = NOW + day * DAY
        shown.append(node.own_pass)
        assert at.problem_of(node._own.chain.subject, node.own_pass) == "", f"day {day}"
    assert 6 <= len(set(shown)) <= 10
    now[0] = NOW + 366 * DAY
    assert "expired" in at.problem_of(node._own.chain.subject, node.own_pass)
    assert node.own_pass is node.own_pass, "the machine's certificate is over: nothing is gained"


def test_one_invite_lets_in_a_bounded_number_of_machines_each_as_often_as_it_comes() -> None:
    at, sold = members(HOST), ticket()
    machines = [bought(at, sold, One()) for _ in range(MACHINES_OF_A_TICKET)]
    with pytest.raises(PeerRefused, match="has let in 64 machines"):
        bought(at, sold, One())
    bought(at, sold, machines[0])
    bought(at, ticket(), One())
    assert len(at.register.came_with(machines[0].id)) == MACHINES_OF_A_TICKET - 1


def test_machines_that_one_invite_let_in_are_known_to_all_and_only_those_that_stay() -> None:
    at, sold = members(HOST), ticket()
    one, two, gone = (bought(at, sold, One()) for _ in range(3))
    alone = bought(at, ticket(ONCE), One())
    at.revoke(gone.id)
    other = members(DELEGATE)
    other.hear_register(at.register.to_bytes())
    assert other.register.came_with(one.id) == {two.id}
    assert other.register.came_with(alone.id) == frozenset()
    assert all(map(other.register.has_let_in, (one.id, two.id, gone.id, alone.id)))
    assert not other.register.has_let_in(HOST.id)


def test_whom_a_delegate_alone_had_revoked_is_named_when_that_one_is_revoked() -> None:
    at, other = members(HOST), members(DELEGATE)
    one, two, below = HOST.certified(), HOST.certified(), DELEGATE.certified()
    for machine in (one, two, below):
        other.revoke(machine.id)
    at.revoke(two.id)
    at.hear_register(other.register.to_bytes())
    assert at.register.revoked_only_by(DELEGATE.id) == {one.id, below.id}
    at.revoke(DELEGATE.id)
    assert not at.register.revokes(one.holding.chain)
    assert at.register.revokes(below.holding.chain), "certified by who is out"


def test_tickets_end_and_those_of_revoked_delegates_are_void() -> None:
    with pytest.raises(PeerRefused, match="expired"):
        bought(members(HOST, now=NOW + 2 * DAY), ticket(), One())
    at = members(HOST)
    at.revoke(DELEGATE.id)
    with pytest.raises(PeerRefused, match="who made it is revoked"):
        bought(at, ticket(by=DELEGATE, made=NOW + 9), One())


def test_a_member_certifies_nobody_and_sells_nothing() -> None:
    member = HOST.certified()
    with pytest.raises(PeerRefused, match="may not certify"):
        bought(members(member), ticket(), One())
    with pytest.raises(PeerRefused, match="not genuine"):
        bought(members(HOST), ticket(by=member), One())


def test_a_ticket_for_a_delegate_makes_one_and_only_where_the_chain_has_room() -> None:
    sold = ticket(ONCE | AS_DELEGATE)
    assert bought(members(HOST), sold, One()).holding.is_delegate
    with pytest.raises(PeerRefused, match="at most 2 steps"):
        bought(members(DELEGATE), ticket(AS_DELEGATE), One())


def test_a_request_serves_the_machine_that_signed_it_only() -> None:
    """Who hands it on, or overhears it, can put no other machine into it."""
    request = ask_with(SWARM, ticket(), One().id)
    thief = ask_with(SWARM, ticket(), One().id)
    assert read_request(SWARM, request)
    assert read_request(SWARM, thief[:32] + request[32:]) is None
    with pytest.raises(ValueError, match="not a ticket"):
        ask_with(SWARM, b"", One().id)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_spoils_a_request(at: int, change: int) -> None:
    data = bytearray(REQUEST)
    data[at % len(data)] ^= change
    assert read_request(SWARM, bytes(data)) is None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=700))
def test_no_bytes_of_a_stranger_buy_anything(data: bytes) -> None:
    assert read_request(SWARM, data) is None


REQUEST = ask_with(SWARM, ticket(), One().id)
