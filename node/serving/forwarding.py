"""Forwarding a computed step: rows to the next stage, or ids to client and ring."""

from node.serving.session_table import Hops, InFlightStep, StageSession
from node.worker.messages import Computed
from swarm.wire.messages import Step, Token
from swarm.wire.token_ids import ids_to_bytes


def hops_of(answer: Computed, in_flight: InFlightStep) -> Hops:
    """Where the time of a step went so far, our own stage included."""
    return [*in_flight.hops, [answer.queue_us, answer.compute_us, in_flight.network_us]]


def next_stage_step(session: StageSession, answer: Computed, in_flight: InFlightStep) -> Step:
    """The step for the stage behind ours."""
    opened = session.message
    return Step(
        session=opened.session,
        epoch=opened.epoch,
        key=opened.key,
        stage=session.next_stage,
        position=answer.position,
        tokens=answer.tokens,
        sample=answer.sample,
        dtype=answer.dtype,
        hops=hops_of(answer, in_flight),
        drafts=in_flight.drafts,
        rewinds=session.rewinds,
        body=answer.body,
    )


def token_and_ring_step(
    session: StageSession, answer: Computed, in_flight: InFlightStep, now_seconds: float
) -> tuple[Token, Step | None]:
    """What the client is told, and the next turn of the ring unless the session has ended.

    A wrong guess makes the next step start at its place: all stages rewrite the rows from there.
    """
    opened = session.message
    common = (opened.session, opened.epoch, opened.key)
    hops, guessed = hops_of(answer, in_flight), len(in_flight.drafts)
    first = answer.position + answer.tokens - guessed
    token = Token(*common, first, answer.ids, answer.finish, hops, guessed, body=answer.body)
    if answer.finish:
        return token, None
    drafts = _chosen(session, answer, hops, now_seconds)
    ring = Step(
        *common,
        stage=0,
        position=first + len(answer.ids) - 1,
        tokens=1 + len(drafts),
        sample=True,
        dtype="i32",
        drafts=drafts,
        rewinds=session.rewinds + (len(answer.ids) <= guessed),
        body=ids_to_bytes([answer.ids[-1], *drafts]),
    )
    return token, ring


def _chosen(session: StageSession, answer: Computed, hops: Hops, now_seconds: float) -> list[int]:
    if session.message.sampling.get("speculate") is not None:
        return answer.drafts  # the worker guesses as many as the client wants
    compute_us = sum(compute for _, compute, _ in hops)
    session.draft_length.note_compute(compute_us / 1e6, answer.tokens, answer.ids)
    return session.draft_length.choose(answer.drafts, now_seconds)
