"""A node of the version before and one of today make one swarm, and both kinds of client ask it."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client, PeerRefused
from client.event_loop_thread import EventLoopThread
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.reference_model import expected
from tests.whole.swarms import Nodes, Part, environment, nodes_in, shard_bytes

pytestmark = pytest.mark.slow  # five starts of the heavier nodes of then: `make test-versions`

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "27c01c01ae00d9719e4d90370c5f9cd12afd5b05"
PACKAGES = ("swarm", "node", "client", "planner")
OLD, NEW_HOSTS = "old hosts", "new hosts"
STORY, NEW = "Once upon a time", 24
HALF = shard_bytes(SPEC, SPEC.layers // 2, *WHOLE, ends=1)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A swarm of one old and one new node, and where the old version lies."""

    nodes: Nodes
    invite: str
    before: Path


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the version before, taken from the history of this checkout."""
    git = ("git", "-C", str(ROOT), "archive", BEFORE, *PACKAGES)
    try:
        archive = subprocess.run(git, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the history of the project is not here: {error}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=[OLD, NEW_HOSTS])
def mixed(
    request: pytest.FixtureRequest, before: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mixed]:
    """Two nodes with half of the model each; one of them is of the version before."""
    first, second = (before, ROOT) if request.param == OLD else (ROOT, before)
    with nodes_in(tmp_path_factory.mktemp("mixed")) as nodes:
        host = nodes.start_from(first, Part("first", HALF), "--host")
        invite = host.line("invite:")
        other = nodes.start_from(second, Part("second", HALF), "--join", invite)
        host.line("ready:")
        other.line("ready:")
        yield Mixed(nodes, invite, before)


def test_old_and_new_node_serve_a_client_of_today_together(
    mixed: Mixed, loop_thread: EventLoopThread
) -> None:
    with loop_thread.hold(Client(mixed.invite)) as asking:
        answer = loop_thread.run(asking.generate(STORY, max_tokens=NEW))
    assert list(answer.token_ids) == expected(STORY, NEW)
    assert len(answer.route) == 2


def test_an_option_that_is_new_is_obeyed_or_refused_by_name_but_never_ignored(
    mixed: Mixed, loop_thread: EventLoopThread
) -> None:
    with loop_thread.hold(Client(mixed.invite)) as asking:
        outcome = loop_thread.run(_biased(asking))
    assert outcome == str((65,) * 4) or "Unknown sampling option 'logit_bias'" in outcome


async def _biased(asking: Client) -> str:
    """The ids of an answer that can be only one, or why it was refused."""
    try:
        return str((await asking.generate(STORY, max_tokens=4, logit_bias={65: 100})).token_ids)
    except PeerRefused as refusal:
        return str(refusal)


def test_a_client_of_the_version_before_gets_the_same_tokens(mixed: Mixed, tmp_path: Path) -> None:
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "swarm", "generate", STORY, "--json"),
            *("--max-tokens", str(NEW), "--join", mixed.invite),
        ],
        capture_output=True,
        text=True,
        cwd=mixed.before,
        env=environment(tmp_path) | {"PYTHONPATH": str(mixed.before)},
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["token_ids"] == expected(STORY, NEW)
