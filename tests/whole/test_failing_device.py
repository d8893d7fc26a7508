"""A node whose model file is damaged while it serves: a spare takes its part, and it is named."""

import os
import signal
import time
from pathlib import Path
from shutil import copytree

import psutil
import pytest

import client
from client.cli.swarm_status import SwarmStatus, read_status
from client.event_loop_thread import EventLoopThread
from client.network import open_links
from swarm.commands.package_finder import command_of
from swarm.invites import Invite
from tests.whole.conftest import SPEC
from tests.whole.reference_model import TINY, expected
from tests.whole.swarms import NodeProcess, Nodes, Part, nodes_in, shard_bytes

pytestmark = [pytest.mark.nodes, pytest.mark.slow]

HALF = shard_bytes(SPEC, 4, SPEC.kv_heads, SPEC.mlp_blocks, ends=1) + 400_000  # not a layer more
WITHIN_SECONDS = 30.0
CUT_OFF = (
    f"node.device.local_device: shard of device 0 is lost: {TINY.name}/model.safetensors is cut off"
)
TOKENS = 12
WORKER = command_of("node.worker")[-1]


def start(nodes: Nodes, folder: Path, name: str, *how: str) -> NodeProcess:
    """Start a node where its own copy of the model lies."""
    here = folder / f"cwd {name}"
    copytree(TINY, here / TINY.name)
    prefix = ("env", f"--chdir={here}", f"PYTHONPATH={Path(client.__file__).parents[1]}")
    return nodes.start_behind(prefix, Part(name, HALF), *how, "--listen", "127.0.0.1")


def kill_worker(node: NodeProcess) -> None:
    children = psutil.Process(node.process.pid).children()
    (worker,) = [child.pid for child in children if WORKER in child.cmdline()]
    os.kill(worker, signal.SIGKILL)


def cut_off(folder: Path) -> None:
    """What a full disk or a broken copy leaves of a model file."""
    for path in folder.glob("*.safetensors"):
        os.truncate(path, path.stat().st_size // 3)


async def _asked(invite: str) -> list[int]:
    async with client.Client(invite) as asking:
        generation = await asking.generate("Once", max_tokens=TOKENS, timeout_seconds=60.0)
        return list(generation.token_ids)


async def _status(invite: str) -> SwarmStatus:
    async with open_links(Invite.parse(invite)) as links:
        return await read_status(links.board, Invite.parse(invite))


def test_a_spare_serves_in_place_of_a_node_whose_model_file_is_cut_off(
    tmp_path: Path, loop_thread: EventLoopThread
) -> None:
    with nodes_in(tmp_path) as nodes:
        host = start(nodes, tmp_path, "host", "--host", "--model", f"./{TINY.name}")
        invite = host.line("invite: ")
        failing = start(nodes, tmp_path, "failing", "--join", invite)
        failing.line("ready: ")
        host.line("ready: ")
        spare = start(nodes, tmp_path, "spare", "--join", invite)
        spare.line("spare: ")
        want = expected("Once", TOKENS)
        assert loop_thread.run(_asked(invite)) == want

        cut_off(tmp_path / "cwd failing" / TINY.name)
        kill_worker(failing)
        failing.line(CUT_OFF)  # its next worker has begun, which takes seconds, and failed
        began = time.monotonic()
        spare.line("ready: ", WITHIN_SECONDS)
        assert loop_thread.run(_asked(invite)) == want
        assert time.monotonic() - began < WITHIN_SECONDS

        status = loop_thread.run(_status(invite))
        named = {status.name_of(device.rpartition("/")[0]) for device in status.troubles}
        assert named == {"failing"}
        (trouble,) = status.troubles.values()
        assert str(tmp_path) not in trouble.cause
