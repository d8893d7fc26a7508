"""JsonResponse: plain values as JSON, also where a client sent halves of surrogate pairs."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class JsonResponse(Response):
    """A response of JSON."""

    media_type = "application/json"

    def __init__(
        self, content: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status, headers)

    def render(self, content: Any) -> bytes:
        """The bytes of its body."""
        return dump(content)


def dump(value: object) -> bytes:
    """A value as compact JSON in UTF-8; what is no text becomes question marks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
