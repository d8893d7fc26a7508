"""What follows from a computed step: rows for the next stage, or ids for client and ring."""

from node.serving.session_table import Hops, Pending, Seat
from node.worker.messages import Computed
from swarm.wire.messages import Step, Token
from swarm.wire.tensor_codec import ids_to_bytes


def hops_of(answer: Computed, pending: Pending) -> Hops:
    """Where the time of a step went so far, our own stage included."""
    return [*pending.hops, [answer.queue_us, answer.compute_us, pending.network_us]]


def rows_onward(seat: Seat, answer: Computed, pending: Pending) -> Step:
    """The step for the stage behind ours."""
    opened = seat.message
    return Step(
        session=opened.session,
        epoch=opened.epoch,
        key=opened.key,
        stage=seat.next_stage,
        position=answer.position,
        tokens=answer.tokens,
        sample=answer.sample,
        dtype=answer.dtype,
        hops=hops_of(answer, pending),
        drafts=pending.drafts,
        rewinds=seat.rewinds,
        body=answer.body,
    )


def ids_onward(
    seat: Seat, answer: Computed, pending: Pending, now_seconds: float
) -> tuple[Token, Step | None]:
    """What the client is told, and the next turn of the ring unless the session has ended.

    A wrong guess makes the next step start at its place: all stages rewrite the rows from there.
    """
    opened = seat.message
    common = (opened.session, opened.epoch, opened.key)
    hops, guessed = hops_of(answer, pending), len(pending.drafts)
    first = answer.position + answer.tokens - guessed
    token = Token(*common, first, answer.ids, answer.finish, hops, guessed)
    if answer.finish:
        return token, None
    drafts = _chosen(seat, answer, hops, now_seconds)
    ring = Step(
        *common,
        stage=0,
        position=first + len(answer.ids) - 1,
        tokens=1 + len(drafts),
        sample=True,
        dtype="i32",
        drafts=drafts,
        rewinds=seat.rewinds + (len(answer.ids) <= guessed),
        body=ids_to_bytes([answer.ids[-1], *drafts]),
    )
    return token, ring


def _chosen(seat: Seat, answer: Computed, hops: Hops, now_seconds: float) -> list[int]:
    if seat.message.sampling.get("speculate") is not None:
        return answer.drafts  # the worker guesses as many as the client wants
    compute_us = sum(compute for _, compute, _ in hops)
    seat.speculation.computed(compute_us / 1e6, answer.tokens, answer.ids)
    return seat.speculation.chosen(answer.drafts, now_seconds)
