"""`/v1/models`: what may be asked for here, and how long it may be."""

import time
from typing import Any

from fastapi import APIRouter

from client.gateway.answering.answer_response import Desk
from client.gateway.answering.preparing import context_of, model_named, served_names

OWNER = "swarm"


def model_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()
    created = int(time.time())

    async def shown(name: str) -> dict[str, Any]:
        spec, context = (await desk.client.model()).spec, await context_of(desk)
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": OWNER,
            "root": spec.name,
            "max_model_len": context,
            "context_length": context,
            "meta": {"n_ctx_train": spec.context, "n_vocab": spec.vocab, "n_embd": spec.hidden},
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        }

    @router.get("/v1/models")
    async def listed() -> dict[str, Any]:
        found = [await shown(name) for name in await served_names(desk)]
        return {"object": "list", "data": found, "models": []}  # which Codex reads besides

    @router.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        return await shown(await model_named(desk, name))

    return router
