"""The one tree of errors: every one says the cause and the next step.

SwarmError
├── BadInput                what a person typed or configured cannot work (exit code 2)
│   ├── BadInvite           an invite is malformed or belongs to another swarm
│   ├── BadModel            a model is unknown, unsupported or not in safetensors
│   ├── BadSampling         a sampling option is out of range
│   └── PromptTooLong       prompt and answer together exceed the context
├── Unreachable             no bootstrap peer answers, or the clock is off
├── DoesNotFit              the devices at hand cannot hold the model
├── NoRoute                 the advertisements do not cover every layer (yet)
├── PeerError               one other peer is the cause
│   ├── PeerLost            its stream ended or it stopped answering
│   ├── PeerRefused         it answered FAIL or BUSY
│   ├── PeerMisbehaved      what it sent cannot be true: it is broken, or it lies
│   └── Deadline            it did not answer in time
├── ProtocolError           bytes or messages against the protocol
│   ├── LocalProtocolError  our bug
│   └── RemoteProtocolError the peer's bug
└── EngineError             the arithmetic of a shard failed
    └── NoRoom              the KV cache is full; try again later
"""


class SwarmError(Exception):
    """Anything that Swarm itself raises: a cause, and what to do next."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.cause} {self.next_step}".strip()


class BadInput(SwarmError):
    """What a person typed or configured cannot work; `option` is what it is about, if it is one."""

    exit_code = 2

    def __init__(self, cause: str, next_step: str = "", *, option: str = "") -> None:
        super().__init__(cause, next_step)
        self.option = option


class BadInvite(BadInput):
    """An invite is malformed or belongs to another swarm."""


class BadModel(BadInput):
    """A model is unknown, of an unsupported architecture, or not in safetensors."""


class BadSampling(BadInput):
    """A sampling option is out of its range."""


class PromptTooLong(BadInput):
    """Prompt and answer together exceed the model's context."""


class Unreachable(SwarmError):
    """No bootstrap peer answers, or it refuses us."""

    exit_code = 2


class DoesNotFit(SwarmError):
    """The devices at hand cannot hold the model."""

    exit_code = 2


class NoRoute(SwarmError):
    """The live advertisements do not cover every layer."""


class PeerError(SwarmError):
    """One other peer is the cause."""

    def __init__(
        self, cause: str, next_step: str = "", *, peer: str = "", told_by: str = ""
    ) -> None:
        super().__init__(cause, next_step)
        self.peer = peer
        self.told_by = told_by  # who says so, if it is hearsay


class PeerLost(PeerError):
    """A peer's stream ended or it stopped answering."""


class PeerRefused(PeerError):
    """A peer answered FAIL or BUSY."""

    def __init__(
        self, cause: str, next_step: str = "", *, peer: str = "", retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(cause, next_step, peer=peer)
        self.retry_after_seconds = retry_after_seconds


class PeerMisbehaved(PeerError):
    """What a peer sent cannot be true: it is broken, or it lies."""


class Deadline(PeerError):
    """A peer did not answer in time."""


class ProtocolError(SwarmError):
    """Bytes or messages that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class EngineError(SwarmError):
    """The arithmetic of a shard failed."""


class NoRoom(EngineError):
    """The KV cache has no room for the session; try again later."""
