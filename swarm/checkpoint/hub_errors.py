"""What the hub's refusals and silences mean to a person: a cause and a next step."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from swarm.errors import BadModel, SwarmError, Unreachable


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into BadModel or Unreachable."""
    try:
        yield
    except (HFValidationError, httpx2.HTTPError, EntryNotFoundError, OSError) as error:
        raise _meaning(repo, error) from error


def _meaning(repo: str, error: Exception) -> SwarmError:
    match error:
        case GatedRepoError():
            return BadModel(
                f"The model {repo} is gated, and its owner has not let this token in.",
                "Accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN.",
            )
        case RevisionNotFoundError():
            return BadModel(f"The model {repo} has no such revision.", "Check it on the hub.")
        case RepositoryNotFoundError() | HFValidationError():
            return _unknown(repo, "nor found on the hub", "a private model needs HF_TOKEN.")
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            return BadModel(
                f"The model {repo!r} is neither built in, nor a folder, nor downloaded already as"
                " far as it is needed, and the hub cannot be reached.",
                "Name a folder, connect to the network, or unset HF_HUB_OFFLINE.",
            )
        case EntryNotFoundError():
            return BadModel(f"The model {repo} lacks a file on the hub.", "Choose another model.")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return BadModel(f"The hub refuses {repo}: {_line(error)}.", "Check HF_TOKEN.")
        case httpx2.HTTPError() | FileMetadataError():
            return Unreachable(
                f"The hub does not hand over {repo}: {_line(error)}.",
                "Check the network and HF_ENDPOINT, then start again: what came is kept.",
            )
    return Unreachable(f"The files of {repo} cannot be kept: {error}.", "Check HF_HOME.")


def _unknown(repo: str, where: str, more: str) -> BadModel:
    return BadModel(
        f"The model {repo!r} is neither built in, nor a folder, {where}.", f"Check the name; {more}"
    )


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said[:200].rstrip(".")
