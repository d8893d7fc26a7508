"""Switchboard: hands what a channel delivers to the session that it is for."""

import logging

from client.session.inference_session import Session
from swarm.p2p.channel import Channel
from swarm.wire.messages import Fail, Message, Moved, SessionMessage

logger = logging.getLogger(__name__)


class Switchboard:
    """All sessions that share one channel."""

    def __init__(self, channel: Channel) -> None:
        self._sessions: dict[str, Session] = {}
        channel.listen(self._receive, self._lose)

    def add(self, session: Session) -> None:
        """Deliver to this session from now on."""
        self._sessions[session.id] = session

    def remove(self, session: Session) -> None:
        """Deliver no more to it."""
        self._sessions.pop(session.id, None)

    def _receive(self, peer: str, message: Message) -> None:
        if isinstance(message, SessionMessage | Fail | Moved):
            session = self._sessions.get(message.session)
            if session is not None:
                session.receive(peer, message)

    def _lose(self, peer: str, reason: str) -> None:
        logger.info("lost %s: %s", peer, reason)
        for session in self._sessions.values():
            session.lose(peer, reason)
