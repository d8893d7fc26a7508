"""make_app: the whole HTTP API over one connected client, as an ASGI application."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from client.async_client import Client
from client.gateway.answering.answer_response import Desk
from client.gateway.answering.metrics import Metrics
from client.gateway.api.chat_completions import chat_routes
from client.gateway.api.completions import completion_routes
from client.gateway.api.health import health_routes
from client.gateway.api.messages import message_routes
from client.gateway.api.metrics import metric_routes
from client.gateway.api.models import model_routes
from client.gateway.api.ollama import ollama_routes
from client.gateway.api.responses import response_routes
from client.gateway.api.tokens import token_routes
from client.gateway.http.access import Access
from client.gateway.http.admission import Admission
from client.gateway.http.api_error import (
    SERVER_ERROR,
    ApiError,
    error_response,
    failure_of,
    refusal_of,
)
from client.gateway.http.body_limit import BodyLimit
from client.gateway.http.request_log import RequestLog
from client.gateway.http.settings import GatewaySettings
from client.gateway.http.validation import problem_of
from swarm import __version__
from swarm.errors import BadInput, SwarmError

ROUTES = (
    model_routes,
    chat_routes,
    completion_routes,
    response_routes,
    message_routes,
    ollama_routes,
    token_routes,
    health_routes,
    metric_routes,
)


def make_app(client: Client, settings: GatewaySettings | None = None) -> ASGIApp:
    """An application that asks through this client, which is connected while it serves."""
    settings = settings or GatewaySettings()
    admission = Admission(settings)
    desk = Desk(client, settings, admission, Metrics(admission))
    api = FastAPI(
        title="Swarm",
        version=__version__,
        openapi_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # curl, as Ollama's page has it, names none
    )
    for routes in ROUTES:
        api.include_router(routes(desk))
    _speak_the_clients_errors(api)
    return RequestLog(Access(BodyLimit(api, settings), settings))


def _speak_the_clients_errors(api: FastAPI) -> None:
    """Replace FastAPI's own errors, of which clients show the number alone."""

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(request.url.path, error)

    @api.exception_handler(SwarmError)
    async def failed(request: Request, error: SwarmError) -> Response:
        if isinstance(error, BadInput):  # of who asks: no peer has heard of it yet
            return error_response(request.url.path, refusal_of(error))
        return error_response(request.url.path, failure_of(error))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, problem_of(error.errors(), error.body))

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return error_response(request.url.path, _problem(request, error))

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        message = "The gateway failed; its log says more."
        return error_response(request.url.path, ApiError(500, message, kind=SERVER_ERROR))


def _problem(request: Request, error: HTTPException) -> ApiError:
    if error.status_code in (404, 405):
        where = f"{request.method} {request.url.path}"
        message = f"{where!r:.200} is not served here. See docs/gateway.md for what is."
        return ApiError(error.status_code, message, code="unsupported_endpoint")
    return ApiError(error.status_code, str(error.detail))
