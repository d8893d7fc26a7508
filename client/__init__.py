"""Client: one person asking a swarm: `generate`, `stream`, or `Client` for many requests.

What needs a tokenizer is loaded when it is asked for: `swarm status` needs none, and no model.
"""

import importlib
from typing import TYPE_CHECKING

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
from swarm.wire.token_logprobs import TokenLogprobs

if TYPE_CHECKING:
    from client.api import Stream, generate, stream
    from client.async_client import Client
    from client.generation import Generation, StageTiming
    from client.token_stream import Piece, TokenStream

__all__ = [
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
    "Piece",
    "PromptTooLong",
    "Sampling",
    "StageTiming",
    "Stream",
    "SwarmError",
    "TokenLogprobs",
    "TokenStream",
    "Unreachable",
    "generate",
    "stream",
]
_HOMES = ("generation", "token_stream", "async_client", "api")  # of the others, the lightest first


def __getattr__(name: str) -> object:
    """Load a public name from the first module that has it (PEP 562)."""
    for home in _HOMES if name in __all__ else ():
        module = vars(importlib.import_module(f"client.{home}"))
        if name in module:
            globals()[name] = module[name]
            return globals()[name]
    raise AttributeError(f"module 'client' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
