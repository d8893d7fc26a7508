"""CheckedBody: bodies of requests, checked field by field; only what is listed is ignored."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, model_validator

from client.gateway.http.api_error import ApiError, bad_request
from client.request import Options

SEEDS = (1 << 63) - 1


class CheckedBody(BaseModel):
    """A JSON object: null means that a field is not there, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    IGNORED: ClassVar[frozenset[str]] = frozenset()  # harmless: they change no answer

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {n: v for n, v in values.items() if v is not None and n not in cls.IGNORED}


class Part(Protocol):
    """One of the parts that a content may consist of."""

    def plain(self) -> str:
        """Its text; raises ApiError if it has none."""


def plain_text(content: str | Sequence[Part]) -> str:
    """The text of a string or of parts; raises ApiError if one is no text."""
    return content if isinstance(content, str) else "\n".join(part.plain() for part in content)


class SamplingBody(CheckedBody):
    """How the tokens of an answer are chosen, in the words that OpenAI's and vLLM's clients use."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    seed: int | None = None
    stop: str | list[str] = []
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None  # vLLM's words

    def options(self) -> Options:
        """The same for `Client.generate`."""
        return Options(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=None if self.seed is None else self.seed & SEEDS,
            stop=self.stop,
            response_format=self.response_format,
            structured_outputs=self.structured_outputs,
        )


def refuse_all(body: BaseModel, **harmless: object) -> None:
    """Raise ApiError if one of these fields says anything but the harmless."""
    for name, value in harmless.items():
        if getattr(body, name) != value:
            raise unsupported(name)


def unsupported(name: str) -> ApiError:
    """The error for a field that would change the answer, and cannot here."""
    message = f"The field {name!r} is not supported yet. Leave it out."
    return bad_request(message, name, "unsupported_parameter")
