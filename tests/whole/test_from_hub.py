"""A model of the hub over two nodes: each fetches its own layers, the client none at all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.checkpoint.byte_ranges import size_of
from swarm.checkpoint.safetensors_headers import read_headers
from swarm.checkpoint.sparse_file import present
from tests.swarm.checkpoint.hub_server import LARGE, Hub, hub_of
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.reference_model import TINY, expected
from tests.whole.swarms import Nodes, Part, environment, nodes_in, shard_bytes

pytestmark = pytest.mark.nodes

NAME = "someone/model"
FOUR = Part("four", shard_bytes(SPEC, 4, *WHOLE, ends=1))  # ranks of a stage need both ends
HALF = Part("half", shard_bytes(SPEC, 4, *WHOLE, ends=1), slowdown=1.5)


@dataclass
class FromHub:
    """A swarm whose nodes know the hub alone."""

    hub: Hub
    nodes: Nodes
    folder: Path
    invite: str

    def variables(self, name: str) -> dict[str, str]:
        """The environment of somebody with an empty cache."""
        return variables_of(self.hub, self.folder / f"cache-{name}")

    def weights(self, name: str) -> Path:
        """The weight file in somebody's cache."""
        (path,) = (self.folder / f"cache-{name}").rglob("swarm/*/*/model.safetensors")
        return path


def variables_of(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FromHub]:
    folder = tmp_path_factory.mktemp("hub")
    with hub_of(TINY) as hub, nodes_in(folder) as nodes:
        host = nodes.start(
            FOUR, "--host", "--model", NAME, **variables_of(hub, folder / "cache-four")
        )
        made = FromHub(hub, nodes, folder, host.line("invite:"))
        other = nodes.start(HALF, "--join", made.invite, **made.variables("half"))
        host.line("ready:")
        other.line("ready:")
        yield made


def test_each_node_says_what_it_fetched_and_holds_only_its_own_layers(swarm: FromHub) -> None:
    whole = (TINY / "model.safetensors").stat().st_size
    held = [size_of(present(swarm.weights(node.part.name))) for node in swarm.nodes.started]
    owned = [node.line("ready:") for node in swarm.nodes.started]
    assert all("fetched from the hub" in line for line in owned)
    embedding = max(header.end - header.start for header in read_headers(TINY))
    assert sum(held) <= whole + embedding + 2 * 40_000  # a tied head, and the header twice
    assert max(held) < 0.75 * whole


def test_tokens_are_those_of_the_whole_model_and_the_client_fetches_no_weights(
    swarm: FromHub,
) -> None:
    before = len(swarm.hub.asked)
    asks = ("generate", "Once upon a time", "--join", swarm.invite, "--max-tokens", "16", "--json")
    found = subprocess.run(
        [sys.executable, "-c", "from swarm.cli import run; run()", *asks],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(swarm.folder) | swarm.variables("client"),
        check=True,
    )
    answer = json.loads(found.stdout)
    assert answer["token_ids"] == expected("Once upon a time", 16)
    sent = [each for each in swarm.hub.asked[before:] if each.file.endswith(LARGE)]
    first = min(header.start for header in read_headers(TINY))
    assert sum(each.sent for each in sent) == first
    assert size_of(present(swarm.weights("client"))) == first
