"""ApiError: what goes wrong with a request, as a status, headers and a body that clients read."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from client.gateway.http.json_response import JsonResponse
from swarm.errors import (
    BadInput,
    BadInvite,
    BadModel,
    Deadline,
    NoRoute,
    PeerError,
    PeerRefused,
    PromptTooLong,
    SwarmError,
    Unreachable,
)

Body = dict[str, Any]
BAD_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RETRY_SECONDS = 1.0  # after which to come again, where nobody said
LONGEST_RETRY_SECONDS = 120.0  # that OpenAI's clients obey
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Retry:
    """Whether to come again, and when."""

    is_useful: bool
    after_seconds: float | None = None


NEVER = Retry(False)


class ApiError(Exception):
    """Refuses or ends a request; without a word on `retry` that is left to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = BAD_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.code, self.param = kind, code, param
        self.retry = retry

    def headers(self) -> dict[str, str]:
        """What tells a client when to come again, if ever."""
        found = {}
        if self.retry is not None:
            found["x-should-retry"] = "true" if self.retry.is_useful else "false"
            if self.retry.after_seconds is not None:
                seconds = min(max(self.retry.after_seconds, 1.0), LONGEST_RETRY_SECONDS)
                found["retry-after"] = str(math.ceil(seconds))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error for a request that no waiting mends."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, retry_after_seconds: float = RETRY_SECONDS) -> ApiError:
    """The error for who comes when this gateway has enough to do."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry=Retry(True, retry_after_seconds),
    )


def refusal_of(error: BadInput) -> ApiError:
    """What a person asked for and cannot have."""
    code = "context_length_exceeded" if isinstance(error, PromptTooLong) else None
    return bad_request(str(error), error.option or None, code)


def failure_of(error: SwarmError) -> ApiError:
    """What became of a generation that had begun to be looked after."""
    for kind, make in FAILURES:
        if isinstance(error, kind):
            return make(error)
    return ApiError(500, str(error), kind=SERVER_ERROR)


def _unserved(error: SwarmError) -> ApiError:
    """Nobody holds some layers: the same request fails again until somebody joins."""
    return ApiError(503, str(error), kind=SERVER_ERROR, code="no_route", retry=NEVER)


def _lost(error: SwarmError) -> ApiError:
    return _again(503, error, "peer_lost", RETRY_SECONDS)


def _refused(error: SwarmError) -> ApiError:
    assert isinstance(error, PeerRefused)
    return _again(503, error, "swarm_busy", error.retry_after_seconds)


def _late(error: SwarmError) -> ApiError:
    return _again(504, error, "timeout", RETRY_SECONDS)


def _again(status: int, error: SwarmError, code: str, seconds: float) -> ApiError:
    return ApiError(
        status,
        str(error),
        kind=SERVER_ERROR,
        code=code,
        retry=Retry(True, seconds),
    )


def _bad_input(error: SwarmError) -> ApiError:
    assert isinstance(error, BadInput)
    return refusal_of(error)


FAILURES: tuple[tuple[type[SwarmError], Callable[[SwarmError], ApiError]], ...] = (
    (NoRoute, _unserved),
    (BadModel, _unserved),
    (BadInvite, _unserved),
    (BadInput, _bad_input),
    (PeerRefused, _refused),
    (Deadline, _late),
    (PeerError, _lost),
    (Unreachable, _lost),
)


def openai_body(error: ApiError) -> Body:
    """An error object of OpenAI's API."""
    shown = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": shown}


def anthropic_body(error: ApiError) -> Body:
    """An error object of Anthropic's API."""
    kind = ANTHROPIC_TYPES.get(error.status)
    kind = kind or ("invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_body(error: ApiError) -> Body:
    """An error of Ollama's API."""
    return {"error": error.message}


def body_for(path: str, error: ApiError) -> Body:
    """The error as clients of that path read it."""
    if path.startswith("/v1/messages"):
        return anthropic_body(error)
    return ollama_body(error) if path.startswith("/api/") else openai_body(error)


def error_response(path: str, error: ApiError, more: Mapping[str, str] = {}) -> JsonResponse:
    """The whole response for an error."""
    return JsonResponse(body_for(path, error), error.status, {**error.headers(), **more})
