"""SessionRouter: hands what a channel delivers to the session that it is for; makes sessions."""

import logging
from contextlib import aclosing
from typing import Protocol

from client.request import Request
from client.routing.route import Route
from client.routing.route_finder import RouteFinder
from client.session.inference_session import Session
from swarm.p2p.channel import Channel
from swarm.wire.messages import Fail, Message, Moved, SessionMessage, Step
from swarm.wire.rules import Side, is_heard

logger = logging.getLogger(__name__)


class Stages(Protocol):
    """The stages of a node, as far as they share its channel with a client."""

    def on_message(self, peer: str, message: Message) -> None:
        """Act on a message, if it is for a stage; raises RemoteProtocolError."""

    def on_lost(self, peer: str, reason: str) -> None:
        """Learn that the streams to a peer ended."""


class SessionRouter:
    """Listens to a channel, also for the `stages` of the node whose channel it is, if it is one.

    Only a STEP is both for stages and for clients, who carry it between two of them: it is for us
    if it is to go on to another peer.
    """

    def __init__(self, channel: Channel, stages: Stages | None = None) -> None:
        self._sessions: dict[str, Session] = {}
        self._stages = stages
        channel.listen(self._receive, self._lose)

    def add(self, session: Session) -> None:
        """Deliver to this session from now on."""
        self._sessions[session.id] = session

    def remove(self, session: Session) -> None:
        """Deliver no more to it."""
        self._sessions.pop(session.id, None)

    def _receive(self, peer: str, message: Message) -> None:
        session = self._session_for(message)
        if self._stages is None or (isinstance(message, Step) and _carries(session, message)):
            is_ours = True
        else:
            self._stages.on_message(peer, message)
            is_ours = is_heard(type(message), Side.CLIENT) and not isinstance(message, Step)
        if session is not None and is_ours:
            session.receive(peer, message)

    def _session_for(self, message: Message) -> Session | None:
        if isinstance(message, SessionMessage | Fail | Moved):
            return self._sessions.get(message.session)
        return None

    def _lose(self, peer: str, reason: str) -> None:
        logger.info("lost %s: %s", peer, reason)
        if self._stages is not None:
            self._stages.on_lost(peer, reason)
        for session in self._sessions.values():
            session.lose(peer, reason)


def _carries(session: Session | None, step: Step) -> bool:
    return session is not None and session.carries(step)


class Sessions:
    """Makes sessions that hear what is said to them until they are ended."""

    def __init__(self, channel: Channel, route_finder: RouteFinder, router: SessionRouter) -> None:
        self._channel, self._route_finder, self._router = channel, route_finder, router

    def begin(self, request: Request) -> Session:
        """A session for a request."""
        session = Session(self._channel, self._route_finder, request, warm_up=self._warm_up)
        self._router.add(session)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._router.remove(session)

    async def _warm_up(self, request: Request, route: Route) -> None:
        """Let the stages of a route compute a prompt; raises SwarmError."""
        session = self.begin(request)
        session.prefer(route)
        try:
            async with aclosing(session.tokens()) as tokens:
                async for _ in tokens:
                    pass
        finally:
            self.end(session)
