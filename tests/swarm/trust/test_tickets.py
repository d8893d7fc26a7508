"""Tickets: what is sold can be shown to have been sold, by nobody but who has its secret."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.invites import TICKET_CAP
from swarm.trust.identity import KEY_SIZE, Identity, swarm_id
from swarm.trust.tickets import (
    AS_DELEGATE,
    ONCE,
    SIGNATURE_BYTES,
    TERMS,
    ask_with,
    read_request,
    sell,
)
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()
DELEGATE = HOST.certified(as_delegate=True)
MEMBER = HOST.certified()


def sold(by: One = HOST, flags: int = 0) -> bytes:
    return sell(SWARM, by.issuer, NOW, NOW + 60, flags)


def test_a_request_says_who_asks_and_all_that_was_sold() -> None:
    machine = One().id
    for by in (HOST, DELEGATE):
        for flags in (0, ONCE, AS_DELEGATE, ONCE | AS_DELEGATE):
            read = read_request(SWARM, ask_with(SWARM, sold(by, flags), machine))
            assert read is not None
            asker, ticket = read
            assert asker == machine
            assert (ticket.made, ticket.until) == (int(NOW), int(NOW + 60))
            assert (ticket.is_once, ticket.makes_delegate) == (
                bool(flags & ONCE),
                bool(flags & AS_DELEGATE),
            )
            assert ticket.issuer == by.holding


def test_a_request_does_not_hold_the_secret() -> None:
    ticket = sold()
    assert ticket[:KEY_SIZE] not in ask_with(SWARM, ticket, One().id)


def test_every_ticket_has_an_id_of_its_own_that_each_request_shows() -> None:
    one, other = sold(), sold()
    ids = []
    for ticket in (one, one, other):
        read = read_request(SWARM, ask_with(SWARM, ticket, One().id))
        assert read is not None
        ids.append(read[1].id)
    assert ids[0] == ids[1] != ids[2]


def test_a_member_sells_nothing_and_a_ticket_is_of_one_swarm() -> None:
    other = swarm_id("other", Identity.throwaway().peer)
    assert read_request(SWARM, ask_with(SWARM, sold(MEMBER), One().id)) is None
    assert read_request(other, ask_with(SWARM, sold(), One().id)) is None
    assert read_request(SWARM, ask_with(other, sold(), One().id)) is None


def test_terms_cannot_be_changed_after_the_sale() -> None:
    ticket = sold(flags=ONCE)
    end = TERMS.size  # the last byte of the terms, as the ticket begins with the secret key
    for better in (
        ticket[: end - 1] + b"\x00" + ticket[end:],  # for many
        ticket[: end - 1] + bytes([ONCE | AS_DELEGATE]) + ticket[end:],
        ticket[:KEY_SIZE] + sold()[KEY_SIZE:],  # the terms of another one
        bytes(KEY_SIZE) + ticket[KEY_SIZE:],  # another secret
    ):
        assert read_request(SWARM, ask_with(SWARM, better, One().id)) is None


def test_tickets_fit_the_invites_that_carry_them() -> None:
    assert len(sold(DELEGATE)) > len(sold()) > KEY_SIZE + SIGNATURE_BYTES
    assert len(sold(DELEGATE)) <= TICKET_CAP


@pytest.mark.parametrize("ticket", [b"", b"short", bytes(KEY_SIZE - 1)])
def test_what_is_no_ticket_asks_for_nothing(ticket: bytes) -> None:
    with pytest.raises(ValueError, match="not a ticket"):
        ask_with(SWARM, ticket, One().id)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=KEY_SIZE, max_size=700))
def test_no_made_up_ticket_buys_anything(ticket: bytes) -> None:
    assert read_request(SWARM, ask_with(SWARM, ticket, MEMBER.id)) is None
