"""Client: one person asking a swarm: `generate`, `stream`, or `Client` for many requests.

Names are loaded when they are asked for: `swarm status` needs no tokenizer, and no model.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.api import Stream, generate, stream
    from client.async_client import Client
    from client.generation import Generation, StageTiming
    from client.token_stream import TokenStream
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

_HOMES = {
    "client.api": ("Stream", "generate", "stream"),
    "client.async_client": ("Client",),
    "client.generation": ("Generation", "StageTiming"),
    "client.token_stream": ("TokenStream",),
    "swarm.errors": (
        "BadInput",
        "BadInvite",
        "BadModel",
        "BadSampling",
        "Deadline",
        "DoesNotFit",
        "NoRoute",
        "PeerError",
        "PeerLost",
        "PeerMisbehaved",
        "PeerRefused",
        "PromptTooLong",
        "SwarmError",
        "Unreachable",
    ),
    "swarm.invites": ("Invite",),
    "swarm.wire.sampling_params": ("Sampling",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
    "PromptTooLong",
    "Sampling",
    "StageTiming",
    "Stream",
    "SwarmError",
    "TokenStream",
    "Unreachable",
    "generate",
    "stream",
]


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'client' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
