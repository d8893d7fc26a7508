"""Client: one person asking a swarm: `generate`, `stream`, or `Client` for many requests."""

from client.api import Stream, generate, stream
from client.async_client import Client
from client.generation import Generation, StageTiming
from client.token_stream import Answer
from swarm.errors import (
    BadInput,
    BadInvite,
    BadModel,
    BadSampling,
    Deadline,
    DoesNotFit,
    NoRoute,
    PeerError,
    PeerLost,
    PeerMisbehaved,
    PeerRefused,
    PromptTooLong,
    SwarmError,
    Unreachable,
)
from swarm.invites import Invite
from swarm.wire.sampling_params import Sampling

__all__ = [
    "Answer",
    "BadInput",
    "BadInvite",
    "BadModel",
    "BadSampling",
    "Client",
    "Deadline",
    "DoesNotFit",
    "Generation",
    "Invite",
    "NoRoute",
    "PeerError",
    "PeerLost",
    "PeerMisbehaved",
    "PeerRefused",
    "PromptTooLong",
    "Sampling",
    "StageTiming",
    "Stream",
    "SwarmError",
    "Unreachable",
    "generate",
    "stream",
]
