"""Preemption when a stage is full: the client that holds most gives way to one with less."""

from collections.abc import Iterable

from node.serving.session_table import StageSession

HEADROOM_TOKENS = 256  # of its answer, that a session is promised besides what it has


def kv_tokens_of(session: StageSession) -> int:
    """KV tokens that a session holds, or is promised."""
    promised = min(session.message.capacity, session.known + HEADROOM_TOKENS)
    return max(promised, session.next_position)


def sessions_to_preempt(
    sessions: Iterable[StageSession], asking: StageSession
) -> list[StageSession]:
    """The sessions that end so that `asking` finds room; none if that would not be fairer.

    They are the latest ones of the client that holds most, as long as it keeps more than the
    client that asks would have.
    """
    held: dict[str, list[StageSession]] = {}
    for session in sessions:
        if session is not asking:
            held.setdefault(session.client, []).append(session)
    totals = {client: sum(map(kv_tokens_of, theirs)) for client, theirs in held.items()}
    wanted = kv_tokens_of(asking)
    would_have = totals.pop(asking.client, 0) + wanted
    most = max(totals, key=totals.__getitem__, default=None)
    if most is None:
        return []
    chosen: list[StageSession] = []
    left, freed = totals[most], 0
    for session in reversed(held[most]):
        left -= kv_tokens_of(session)
        if freed >= wanted or left < would_have:
            break
        chosen.append(session)
        freed += kv_tokens_of(session)
    return chosen
