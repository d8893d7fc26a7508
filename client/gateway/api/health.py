"""`/health` and `/health/ready`: whether this process lives, and whether it can answer."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from client.gateway.answering.answer_response import Desk
from client.gateway.http.json_response import JsonResponse
from swarm import __version__
from swarm.errors import SwarmError

HEALTHY, DEGRADED = "healthy", "degraded"


def health_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    async def route() -> dict[str, Any]:
        try:
            found = await desk.client.route()
        except SwarmError as error:
            return {"status": DEGRADED, "reason": str(error)}
        return {"status": HEALTHY, "stages": len(found.stages), "peers": len(found.members)}

    @router.get("/health")
    async def alive() -> dict[str, Any]:
        return {
            "status": "ok",
            "mode": "client",
            "version": __version__,
            "serving": await route(),
            "generations": {"running": desk.admission.running, "waiting": desk.admission.waiting},
        }

    @router.get("/health/ready")
    async def ready() -> Response:
        found = await route()
        is_ready = found["status"] == HEALTHY
        body = {"status": "ready" if is_ready else "not ready", "subsystems": {"route": found}}
        return JsonResponse(body, 200 if is_ready else 503)

    return router
