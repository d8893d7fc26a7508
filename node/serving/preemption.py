"""Who gives way when a stage is full: the client that holds most, to one that would hold less."""

from collections.abc import Iterable

from node.serving.session_table import Seat

HEADROOM_TOKENS = 256  # of its answer, that a session is promised besides what it has


def tokens_of(seat: Seat) -> int:
    """KV tokens that a session holds, or is promised."""
    promised = min(seat.message.capacity, seat.known + HEADROOM_TOKENS)
    return max(promised, seat.next_position)


def giving_way(seats: Iterable[Seat], asking: Seat) -> list[Seat]:
    """The sessions that end so that `asking` finds room; none if that would not be fairer.

    They are the latest ones of the client that holds most, as long as it keeps more than the
    client that asks would have.
    """
    held: dict[str, list[Seat]] = {}
    for seat in seats:
        if seat is not asking:
            held.setdefault(seat.client, []).append(seat)
    totals = {client: sum(map(tokens_of, theirs)) for client, theirs in held.items()}
    wanted = tokens_of(asking)
    would_have = totals.pop(asking.client, 0) + wanted
    most = max(totals, key=totals.__getitem__, default=None)
    if most is None:
        return []
    chosen: list[Seat] = []
    left, freed = totals[most], 0
    for seat in reversed(held[most]):
        left -= tokens_of(seat)
        if freed >= wanted or left < would_have:
            break
        chosen.append(seat)
        freed += tokens_of(seat)
    return chosen
