"""Schedule: orders of many sessions in, one step after the other out; decided without I/O."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from node.worker.fair_share import FairShare
from node.worker.messages import Compute, Release, Reserve
from swarm.wire.messages import CHUNK_CAP, Message

MOST_TOKENS = 512  # rows in one step
CHUNK_TOKENS = CHUNK_CAP  # rows of prompts in one step: what a decode waits for at most
LEAST_ROWS = 8  # in a step, of clients that have had more than their part: these cost little
DECODE_TOKENS = 16  # a STEP of so few rows is a decode, guesses and short prompts included


@dataclass(frozen=True, slots=True)
class Arrived:
    """An order and when it came."""

    order: Message
    seconds: float


class Schedule:
    """Waiting orders by session; sessions take turns, decodes go before chunks of prompts.

    A session is in a step at most once, so its open and close are never beside its rows. Clients
    that have had more than their part get a few rows of each step, until the others have caught up.
    Those far over it pause between steps of their rows alone, as long as the others are there.
    """

    def __init__(self, most_tokens: int = MOST_TOKENS, most_sessions: int = 0) -> None:
        self._most_tokens = most_tokens
        self._most_sessions = most_sessions or None  # None: all that wait
        self._waiting: dict[str, deque[Arrived]] = {}  # whose turn is next comes first
        self._clients: dict[str, str] = {}  # by session
        self._shares = FairShare()
        self._held_until = 0.0  # rows of clients far over, unless beside those of others
        self._has_passed_over = False  # the chunk whose turn it was

    def serves(self, share: float) -> None:
        """A shard with so large a part of the model's layers runs from now on."""
        self._shares = FairShare(share)
        self._held_until = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, arrived: Arrived) -> None:
        """Take an order; a session that is released needs none of its waiting rows."""
        session = _session_of(arrived.order)
        if isinstance(arrived.order, Reserve):
            self._clients[session] = arrived.order.client
        orders = self._waiting.setdefault(session, deque())
        if isinstance(arrived.order, Release):
            kept = [each for each in orders if not isinstance(each.order, Compute)]
            orders.clear()
            orders.extend(kept)
        orders.append(arrived)

    @property
    def decodes(self) -> int:
        """How many sessions wait, if nothing but decodes is next; else 0."""
        heads = self._heads(is_over=False)
        return len(heads) if all(map(_is_decode, heads)) else 0

    @property
    def decoding(self) -> list[str]:
        """The sessions that wait with a decode, and are not behind others."""
        heads = self._heads(is_over=False)
        return [_session_of(each.order) for each in heads if _is_decode(each)]

    def ran(self, orders: Iterable[Compute], seconds: float, now: float) -> None:
        """A step of these orders took so long."""
        rows: dict[str, int] = {}
        for order in orders:
            client = self._clients.get(order.session, "")
            rows[client] = rows.get(client, 0) + order.tokens
        self._shares.ran(rows, seconds, now)
        if rows and all(map(self._shares.is_far_over, rows)):
            self._held_until = now + self._shares.pause_seconds(seconds, now)

    def is_over(self, session: str) -> bool:
        """Whether a session's client has had more than its part."""
        return self._shares.is_over(self._clients.get(session, ""))

    def held_seconds(self, now: float) -> float:
        """How long nothing of what waits may run, unless something else comes; 0 if it may."""
        if now >= self._held_until or not self._waiting:
            return 0.0
        heads = (orders[0] for orders in self._waiting.values())
        return self._held_until - now if all(map(self._may_be_held, heads)) else 0.0

    def _may_be_held(self, arrived: Arrived) -> bool:
        order = arrived.order
        client = self._clients.get(_session_of(order), "")
        return isinstance(order, Compute) and self._shares.is_far_over(client)

    def _heads(self, *, is_over: bool) -> list[Arrived]:
        """What sessions wait with: of those clients that have had more than their part, or not."""
        waiting = self._waiting.items()
        return [orders[0] for name, orders in waiting if self.is_over(name) == is_over]

    def next_step(
        self,
        most_decodes: int | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        now: float = math.inf,
    ) -> list[Arrived]:
        """Return what runs now, room given back before room taken; nothing if nothing waits.

        At most `chunk_tokens` rows of prompts: what is longer is cut, its rest waits. So do rows
        that are held back, unless `now` is left out.
        """
        over = self._heads(is_over=True)
        heads = self._heads(is_over=False)[: self._most_sessions]
        chunks = self._next_chunks([each for each in heads if _is_chunk(each)], chunk_tokens)
        left = self._most_tokens - sum(map(_tokens_of, chunks))
        rows = [*_within(islice(filter(_is_decode, heads), most_decodes), left), *chunks]
        step = [
            *(each for each in heads + over if isinstance(each.order, Release)),
            *(each for each in heads + over if isinstance(each.order, Reserve)),
            *rows,
            *self._few_of(self._not_held(over, rows, now), self._part_of(rows)),
        ]
        for each in step:
            session = _session_of(each.order)
            self._end_turn(session)
            if isinstance(each.order, Release) and session not in self._waiting:
                self._clients.pop(session, None)
        return step

    def _not_held(self, over: list[Arrived], rows: list[Arrived], now: float) -> list[Arrived]:
        """What clients that are behind others may run beside these rows."""
        if rows or now >= self._held_until:
            return over
        return [each for each in over if not self._may_be_held(each)]

    def _part_of(self, rows: list[Arrived]) -> int:
        """How many rows clients that are behind others may have beside these: as one of them."""
        if not rows:
            return LEAST_ROWS
        clients = {self._clients.get(_session_of(each.order), "") for each in rows}
        return math.ceil(sum(map(_tokens_of, rows)) / len(clients))

    def _few_of(self, over: list[Arrived], most_tokens: int) -> list[Arrived]:
        """So many rows of clients that are behind others; a prompt is cut, its rest waits."""
        rows = [each for each in over if isinstance(each.order, Compute)]
        few = list(_within(rows, most_tokens))[: self._most_sessions]
        if few and _tokens_of(few[0]) > most_tokens:
            return [self._cut(few[0], most_tokens)]
        return few

    def _next_chunks(self, waiting: list[Arrived], most_tokens: int) -> list[Arrived]:
        """So many rows of prompts, the shortest first, every second time by turn.

        A short prompt hardly delays a long one, but a row of them must not starve it.
        """
        ordered = waiting if self._has_passed_over else sorted(waiting, key=_tokens_of)
        chunks = list(_within(ordered, min(most_tokens, self._most_tokens)))
        self._has_passed_over = bool(waiting) and waiting[0] not in chunks
        if chunks and _tokens_of(chunks[0]) > most_tokens:
            return [self._cut(chunks[0], most_tokens)]
        return chunks

    def _cut(self, chunk: Arrived, tokens: int) -> Arrived:
        """Cut the chunk that its session waits with: the rest stays behind it."""
        order = chunk.order
        assert isinstance(order, Compute)
        body, width = memoryview(order.body), len(order.body) // order.tokens * tokens
        first = replace(order, tokens=tokens, sample=False, body=body[:width])
        position, left = order.position + tokens, order.tokens - tokens
        rest = replace(order, position=position, tokens=left, body=body[width:])
        parts = [replace(chunk, order=first), replace(chunk, order=rest)]
        orders = self._waiting[_session_of(order)]
        orders.popleft()
        orders.extendleft(reversed(parts))
        return parts[0]

    def _end_turn(self, session: str) -> None:
        orders = self._waiting.pop(session)
        orders.popleft()
        if orders:
            self._waiting[session] = orders


def _session_of(order: Message) -> str:
    return str(getattr(order, "session", ""))


def _tokens_of(arrived: Arrived) -> int:
    return arrived.order.tokens if isinstance(arrived.order, Compute) else 0


def _is_decode(arrived: Arrived) -> bool:
    return isinstance(arrived.order, Compute) and arrived.order.tokens <= DECODE_TOKENS


def _is_chunk(arrived: Arrived) -> bool:
    return isinstance(arrived.order, Compute) and not _is_decode(arrived)


def _within(arrived: Iterable[Arrived], most_tokens: int) -> Iterator[Arrived]:
    """The first ones that fit; at least one, so that an order beyond every limit still runs."""
    tokens = 0
    for each in arrived:
        if tokens and tokens + _tokens_of(each) > most_tokens:
            return
        tokens += _tokens_of(each)
        yield each
