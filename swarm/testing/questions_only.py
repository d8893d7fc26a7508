"""QuestionsOnly: the Channel of a peer whose control code runs alone, without any streams."""

from swarm.errors import PeerRefused, SwarmError
from swarm.p2p.channel import OnLost, OnMessage, RpcHandler
from swarm.wire.messages import Message


class QuestionsOnly:
    """Answers what it is asked; how questions get to others a subclass says in `ask`."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._handlers: dict[str, RpcHandler] = {}

    def answer(self, name: str, handler: RpcHandler) -> None:
        """Answer the questions called `name`."""
        self._handlers[name] = handler

    async def answered(self, asker: str, name: str, payload: bytes) -> bytes:
        """What we answer: called by the asker's line."""
        handler = self._handlers.get(name)
        if handler is None:
            raise PeerRefused(f"Nobody here answers {name!r}.", peer=self.peer)
        try:
            return await handler(asker, payload)
        except SwarmError as error:
            raise PeerRefused(str(error), peer=self.peer) from error

    def listen(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """No streams here."""

    async def send(self, peer: str, message: Message, *, timeout_seconds: float = 10.0) -> None:
        """No streams here."""

    def send_now(self, peer: str, message: Message) -> bool:
        """No streams here."""
        return False

    async def confirm(self, peer: str, *, timeout_seconds: float) -> None:
        """No streams here."""

    def round_trip_seconds(self, peer: str) -> float | None:
        """Not measured."""
        return None

    async def close(self) -> None:
        """Nothing is held open."""
