"""BodyLimit: reads a request's body whole before anybody looks at it, within bytes and seconds."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.gateway.http.api_error import ApiError, error_response
from client.gateway.http.settings import GatewaySettings

CLOSING = {"connection": "close"}


class BodyLimit:
    """Hands whole bodies on; with an ASGI application behind it."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, or say why not; who hangs up meanwhile gets nothing."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            await error_response(scope["path"], error, CLOSING)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body, None if its sender has gone; raises ApiError."""
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._settings.most_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                return await self._read_all(receive)
        except TimeoutError as error:
            seconds = self._settings.body_seconds
            raise ApiError(
                408, f"The request's body did not arrive within {seconds:g} s.", code="timeout"
            ) from error

    async def _read_all(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._settings.most_body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> ApiError:
        most = self._settings.most_body_bytes
        message = f"The request's body has more than {most} bytes, the most that is read here."
        return ApiError(413, message, code="request_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes after it: that the client has gone."""
    is_read = False

    async def receiving() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
