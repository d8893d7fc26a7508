"""The clients that people have, from their makers, against a gateway and three nodes."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.conftest import SPEC, WHOLE
from tests.whole.swarms import Nodes, Part, nodes_in, shard_bytes, wait_until

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".clients"  # by `make test-clients`
READY_SECONDS = 120.0
SCRIPT_SECONDS = 120.0
PARTS = (
    Part("first", shard_bytes(SPEC, 3, *WHOLE, ends=1)),
    Part("middle", shard_bytes(SPEC, 2, *WHOLE, ends=1)),
    Part("last", shard_bytes(SPEC, 3, *WHOLE, ends=1)),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a gateway answers, over three nodes that hold the model together."""
    with nodes_in(tmp_path_factory.mktemp("clients")) as nodes:
        host = nodes.start(PARTS[0], "--host")
        invite = host.line("invite:")
        for part in PARTS[1:]:
            nodes.start(part, "--join", invite)
        yield ready_gateway(nodes, invite)


def ready_gateway(nodes: Nodes, invite: str) -> str:
    """The address of a gateway, as soon as every layer is served."""
    gateway = nodes.start_gateway("--join", invite, "--port", "0")
    url = gateway.line("serving swarm-tiny at ").removesuffix("/v1")
    wait_until(lambda: is_ready(url), READY_SECONDS, gateway.said)
    return url


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


@pytest.mark.parametrize(
    ("environment", "script"),
    [
        ("now", "ask_with_openai.py"),
        ("old", "ask_with_openai.py"),
        ("now", "ask_with_anthropic.py"),
        ("now", "ask_with_ollama.py"),
        pytest.param("many", "ask_with_langchain.py", marks=pytest.mark.slow),
        pytest.param("many", "ask_with_litellm.py", marks=pytest.mark.slow),
        pytest.param("many", "ask_with_llm.py", marks=pytest.mark.slow),
    ],
)
def test_a_client_reads_all_that_it_asks_for(url: str, environment: str, script: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(INSTALLED / environment)}
    variables["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it looks for prices on the internet
    told = subprocess.run(
        [sys.executable, str(HERE / "clients" / script), url, "swarm-tiny"],
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS,
        env=variables,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.endswith(": ok\n")
