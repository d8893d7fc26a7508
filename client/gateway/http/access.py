"""Access: who may ask at all: keys, and no web pages of strangers in the browser of a user."""

import hmac
from collections.abc import Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.gateway.http.api_error import ApiError, error_response
from client.gateway.http.quota import Quota
from client.gateway.http.settings import GatewaySettings

OPEN_PATHS = frozenset({"/health", "/health/ready"})
ASKED_METHODS = "GET, POST"
ASKED_HEADERS = "authorization, content-type, x-api-key"
PREFLIGHT_SECONDS = "600"


class Access:
    """Lets through who may ask; with an ASGI application behind it."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app, self._settings = app, settings
        self._keys = tuple(key.encode() for key in settings.api_keys)
        self._quota = Quota(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in place of the application where somebody may not ask."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        shared = {"access-control-allow-origin": origin, "vary": "origin"}
        shared = shared if self._is_allowed(origin) else {}
        if shared and scope["method"] == "OPTIONS":
            await _preflight(shared)(scope, receive, send)
        elif (problem := self._problem(scope, headers)) is not None:
            await error_response(scope["path"], problem, shared)(scope, receive, send)
        else:
            await self._app(scope, receive, _adding(shared, send) if shared else send)

    def _problem(self, scope: Scope, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin", "")
        allowed = self._settings.allowed_hosts
        if allowed and host.rpartition(":")[0 if ":" in host else 2].strip("[]") not in allowed:
            return _forbidden(f"This server is not called {host!r:.100}.")
        if origin and not self._is_allowed(origin) and urlsplit(origin).netloc != host:
            return _forbidden(f"Web pages of {origin!r:.100} may not ask here.")
        key = self._key_of(headers)
        if key is None and scope["path"] not in OPEN_PATHS:
            return ApiError(
                401,
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                kind="authentication_error",
                code="invalid_api_key",
            )
        return self._quota.take(key or b"") if scope["method"] == "POST" else None

    def _is_allowed(self, origin: str) -> bool:
        allowed = self._settings.allowed_origins
        return bool(origin) and (origin in allowed or "*" in allowed)

    def _key_of(self, headers: Headers) -> bytes | None:
        """Which key was shown, "" if none is needed; all are compared in full, as long as ever."""
        if not self._keys:
            return b""
        said = list(_keys_said(headers))
        pairs = [(key, hmac.compare_digest(each, key)) for each in said for key in self._keys]
        return next((key for key, is_same in pairs if is_same), None)


def _keys_said(headers: Headers) -> Iterator[bytes]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip().encode()
    for name in ("x-api-key", "api-key"):
        if value := headers.get(name):
            yield value.encode()


def _forbidden(message: str) -> ApiError:
    next_step = "Whoever runs the server can allow it with --allowed-origins or --allowed-hosts."
    return ApiError(403, f"{message} {next_step}", kind="permission_error", code="forbidden")


def _preflight(shared: dict[str, str]) -> Response:
    told = {
        "access-control-allow-methods": ASKED_METHODS,
        "access-control-allow-headers": ASKED_HEADERS,
        "access-control-max-age": PREFLIGHT_SECONDS,
    }
    return Response(status_code=204, headers={**shared, **told})


def _adding(shared: dict[str, str], send: Send) -> Send:
    """Let a page of an allowed origin read the answer."""
    extra = [(name.encode(), value.encode("latin-1")) for name, value in shared.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return sending
