"""KnownSpecs: dimensions of models that were read and found complete once; no torch.

Reading them asks transformers, which takes seconds. What it said is remembered under the digest
over the config and all tensor headers, so that another folder of the same content is known too.
"""

import json
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import constants

from swarm.checkpoint.folder import digest_of, read_facts
from swarm.checkpoint.hub_model import CACHE
from swarm.model_spec import BUILT_IN, ModelSpec
from swarm.state_folder import write_private

logger = logging.getLogger(__name__)

FOLDER = "known"  # of files, each named after a model that was found complete
BUILT_IN_SPEC = Path(__file__).parent.parent / "models" / f"{BUILT_IN}.json"


def recall_spec(folder: Path, name: str) -> ModelSpec | None:
    """The dimensions of a model that was found complete, under this name; raises BadModel."""
    digest = digest_of(*read_facts(folder))
    for path in (BUILT_IN_SPEC, _path_of(digest)):
        spec = _read(path)
        if spec and spec.digest == digest:
            return replace(spec, name=name)
    return None


def remember_spec(spec: ModelSpec) -> None:
    """Keep the dimensions of a model that was found complete, where there is room for them."""
    path = _path_of(spec.digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps(spec.to_json(), indent=1).encode())
    except OSError as error:
        logger.info("that %s is complete will not be remembered: %s", spec.name, error)


def _path_of(digest: str) -> Path:
    known = Path(constants.HF_HOME) / CACHE / FOLDER
    return known / f"{digest}-transformers-{version('transformers')}.json"


def _read(path: Path) -> ModelSpec | None:
    try:
        return ModelSpec(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # absent, or not what we wrote
        return None
