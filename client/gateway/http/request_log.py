"""RequestLog: an id for every request, and one line for each, without a word of its text."""

import logging
import secrets
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swarm.formatting import printable

GONE = 499  # as nginx has it: the client hung up before an answer began
FACTS = "gateway.facts"  # in a scope's state: what the line says more

logger = logging.getLogger(__name__)


class RequestLog:
    """Names requests and writes them down; with an ASGI application behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and say afterwards what it was, how it ended and how long it took."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), GONE
        request_id = f"req_{secrets.token_hex(12)}"
        facts: list[str] = []
        scope.setdefault("state", {})[FACTS] = facts

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), named]}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            logger.info(
                "%s %s %d %.3f s %s%s",
                scope["method"],
                printable(scope["path"], 80),
                status,
                perf_counter() - started,
                request_id,
                "".join(f", {fact}" for fact in facts),
            )
