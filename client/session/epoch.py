"""Epoch: one route that a session opens, what goes to its stages and what they have said of it."""

import hmac
import secrets
from collections.abc import Iterator

from client.routing.route import Route
from client.session.inbox import Inbox
from swarm.errors import PeerLost
from swarm.formatting import printable, short_id
from swarm.wire.messages import (
    CHUNK_CAP,
    KEY_BYTES,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Opened,
    SessionMessage,
    Step,
)
from swarm.wire.token_ids import ids_to_bytes


class Epoch:
    """Its key is new: the stages of earlier routes know those before."""

    def __init__(self, session: str, number: int, route: Route, held: int) -> None:
        self.session, self.number, self.route = session, number, route
        self.key = secrets.token_bytes(KEY_BYTES)
        self.inbox = Inbox()
        self.unopened = set(range(len(route.stages)))  # hops whose OPENED is still to come
        self.held = held  # leading ids whose rows every stage has
        self.leaving: set[str] = set()  # peers that have said that they go
        self._lost: set[str] = set()  # and those that are gone

    def is_of(self, peer: str, message: Message) -> bool:
        """Whether a peer of the route may have sent this message, and means this epoch."""
        if peer not in self.route.leaders:
            return False
        if not isinstance(message, SessionMessage | Fail | Moved):
            return False
        if (message.session, message.epoch) != (self.session, self.number):
            return False
        if isinstance(message, Fail | Moved):
            return True
        return hmac.compare_digest(message.key, self.key)

    def lose(self, peer: str, reason: str) -> None:
        """Note that a peer's stream ended, if it is one of the route's."""
        if peer in self.route.leaders:
            self._lost.add(peer)
            cause = f"Peer {short_id(peer)} was lost: {printable(reason)}"
            self.inbox.put(peer, PeerLost(cause, peer=peer))

    def note(self, opened: Opened) -> None:
        """Take in what a stage holds."""
        self.unopened.discard(opened.stage)
        self.held = min(self.held, opened.held)

    @property
    def silent(self) -> list[str]:
        """The peers whose OPENED is still to come; once all are here, those that leave."""
        leaders = self.route.leaders
        return [leaders[hop] for hop in sorted(self.unopened)] or sorted(self.leaving)

    def steps(self, ids: list[int]) -> Iterator[Step]:
        """The steps that let the stages compute what follows `ids`, from what they hold on."""
        for position in range(self.held, len(ids), CHUNK_CAP):
            chunk = ids[position : position + CHUNK_CAP]
            yield Step(
                self.session,
                self.number,
                self.key,
                stage=0,
                position=position,
                tokens=len(chunk),
                sample=position + len(chunk) == len(ids),
                dtype="i32",
                body=ids_to_bytes(chunk),
            )

    def goodbye(self, *, is_finished: bool) -> tuple[set[str], Close | Cancel]:
        """What tells the stages that they may free it, and whom to tell."""
        kind = Close if is_finished else Cancel
        return set(self.route.leaders) - self._lost, kind(self.session, self.number, self.key)
