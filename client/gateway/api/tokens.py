"""`/tokenize` and `/detokenize`, as vLLM has them: what a text or a chat is in ids, and back."""

import asyncio
from typing import Any, ClassVar

from fastapi import APIRouter
from pydantic import Field

from client.gateway.answering.answer_response import Desk
from client.gateway.answering.preparing import context_of, model_named
from client.gateway.api.chat_messages import ChatMessage, ChatMessages
from client.gateway.api.checked_body import CheckedBody, refuse_all
from client.gateway.api.tools import ToolBody
from client.gateway.http.api_error import bad_request


class TokenizeRequest(ChatMessages, ToolBody):
    """A text, or a chat."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"return_token_strs"})
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] = Field(default_factory=list)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(CheckedBody):
    """Ids."""

    model: str | None = None
    tokens: list[int]


def token_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        await model_named(desk, body.model)
        refuse_all(body, add_special_tokens=True, add_generation_prompt=True)
        local, chat = await desk.client.model(), body.turns() or None
        ids = await asyncio.to_thread(local.ids_of, body.prompt, chat, body.told_tools())
        return {"count": len(ids), "max_model_len": await context_of(desk), "tokens": list(ids)}

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        await model_named(desk, body.model)
        local = await desk.client.model()
        if not all(0 <= token < local.spec.vocab for token in body.tokens):
            raise bad_request(f"An id is outside [0, {local.spec.vocab}).", "tokens")
        return {"prompt": await asyncio.to_thread(local.tokenizer.text_of, body.tokens)}

    return router
