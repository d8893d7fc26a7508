"""GatewaySettings: what a gateway is told at its start, and the bounds that it keeps."""

from dataclasses import dataclass

from client.session.deadlines import TIMEOUT_SECONDS
from swarm.errors import BadInput

LEAST_CONTEXT = 2  # tokens: one of a prompt, one of an answer


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How one gateway serves; raises BadInput on what cannot work."""

    names: tuple[str, ...] = ()  # what clients call the model; none: its own name
    api_keys: tuple[str, ...] = ()  # any of them opens; none: everybody may ask
    requests_per_minute: int | None = None  # of each key; without keys, of all together
    allowed_hosts: frozenset[str] = frozenset()  # names of this server; none: any
    allowed_origins: frozenset[str] = frozenset()  # web pages of others that may ask
    max_model_len: int | None = None  # tokens of prompt and answer; none: the model's context
    default_max_tokens: int = 8192  # of an answer whose length nobody chose
    timeout_seconds: float = TIMEOUT_SECONDS  # without progress
    most_running: int = 128  # generations at once
    most_waiting: int = 512  # more of them, in line
    queue_seconds: float = 30.0  # in line
    most_body_bytes: int = 8 << 20
    body_seconds: float = 30.0  # for a request's body to arrive
    patience_seconds: float = 2.0  # for a first token, before a stream's head is sent without it
    comment_seconds: float = 5.0  # of silence, before a stream says what it waits for

    def __post_init__(self) -> None:
        if self.max_model_len is not None and self.max_model_len < LEAST_CONTEXT:
            raise BadInput(
                f"max_model_len is {self.max_model_len};",
                f"it must be at least {LEAST_CONTEXT}.",
                option="max_model_len",
            )
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise BadInput(
                f"requests_per_minute is {self.requests_per_minute};",
                "it must be at least 1.",
                option="requests_per_minute",
            )
        if not all(self.api_keys):
            raise BadInput("An API key is empty.", "Give one, or leave --api-key out.")
