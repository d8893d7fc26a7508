"""A real node whose worker is killed: the standby worker takes its place, and serves."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from swarm.commands.package_finder import command_of
from tests.whole.swarms import NodeProcess, Part, nodes_in, wait_until

MEMORY_BYTES = 32_000_000  # the whole model, and KV for sessions
SOON = """
import asyncio, sys
from node.config import read_config
from node.main import Terminal, live
config = read_config(sys.argv[sys.argv.index("--host"):], "a node that is calm soon")
asyncio.run(live(config, Terminal(), calm_seconds=1.0))
"""
WORKER, STANDBY = (command_of(f"node.worker{end}")[-1] for end in ("", ".standby"))


def pids_of(node: NodeProcess, module: str) -> list[int]:
    children = psutil.Process(node.process.pid).children()
    return [child.pid for child in children if module in child.cmdline()]


@pytest.mark.slow  # a node, its worker and another one: ten seconds of imports
def test_a_standby_worker_serves_in_place_of_one_that_is_killed_and_ends_with_its_node(
    tmp_path: Path,
) -> None:
    part = Part("lone", MEMORY_BYTES)
    with nodes_in(tmp_path) as nodes:
        how = "--host", "--listen", "127.0.0.1"
        node = nodes.start_behind((sys.executable, "-c", SOON), part, *how)
        node.line("ready")
        (worker,) = pids_of(node, WORKER)
        wait_until(lambda: bool(pids_of(node, STANDBY)), 30.0, node.said)
        (standby,) = pids_of(node, STANDBY)
        wait_until_it_waits(node, standby)
        told = len(node.lines)
        os.kill(worker, signal.SIGKILL)
        node.line("lost", after=told)
        node.line("ready", after=told)
        assert pids_of(node, WORKER) == []  # none was spawned
        assert standby in pids_of(node, STANDBY)
        node.kill()
        wait_until(lambda: not node.orphans(), 10.0, node.said)


def wait_until_it_waits(node: NodeProcess, pid: int) -> None:
    """Wait until the first thread that a standby worker begins, which imports all, has ended."""
    wait_until(lambda: psutil.Process(pid).num_threads() > 1, 30.0, node.said)
    importing = min(each.id for each in psutil.Process(pid).threads() if each.id != pid)
    wait_until(lambda: not Path(f"/proc/{pid}/task/{importing}").exists(), 120.0, node.said)
