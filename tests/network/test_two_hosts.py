"""Nodes on two hosts: one layer that neither can hold alone, and layers that both share."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from swarm.checkpoint.folder import read_spec
from tests.network.conftest import model_of
from tests.network.hosts import Host, connections_of
from tests.network.laboratory import Laboratory
from tests.whole.reference_model import expected
from tests.whole.swarms import (
    START_SECONDS,
    NodeProcess,
    Nodes,
    Part,
    environment,
    shard_bytes,
)

pytestmark = pytest.mark.network

TEXT, NEW = "Once upon a time", 24
PORT = 4001
FIRST, SECOND = "10.77.1", "198.51.100"


@dataclass
class Pair:
    """A node on each of two hosts."""

    hosts: tuple[Host, Host]
    started: tuple[NodeProcess, NodeProcess]
    invite: str
    folder: Path  # of the model
    tmp: Path

    def answer(self) -> list[int]:
        """What a client on the second host gets."""
        command = [*self.hosts[1].command, sys.executable, "-m", "tests.network.ask"]
        done = subprocess.run(
            [*command, self.invite, str(NEW), TEXT],
            env=environment(self.tmp),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        found: list[int] = json.loads(done.stdout.splitlines()[-1])  # after the pieces
        return found

    def plans(self) -> list[str]:
        """What each node says of its part."""
        return [node.line("plan:") for node in self.started]


def pair_on(
    hosts: tuple[Host, Host], parts: tuple[Part, Part], nodes: Nodes, folder: Path, *how: list[str]
) -> Pair:
    """Start both nodes and wait until they serve; `how` adds options of each."""
    own, others = how or ([], [])
    model = ("--model", str(folder))
    host = nodes.start_behind(hosts[0].command, parts[0], "--host", *model, *own)
    invite = host.line("invite:")
    other = nodes.start_behind(hosts[1].command, parts[1], "--join", invite, *others)
    for node in (host, other):
        node.line("ready:")
    return Pair(hosts, (host, other), invite, folder, folder.parent)


def halves(folder: Path) -> tuple[Part, Part]:
    """Memory for half of a layer each, and for the model's ends, of which every rank has a copy."""
    spec = read_spec(folder, str(folder))
    half = shard_bytes(spec, 1, spec.kv_heads // 2, spec.mlp_blocks // 2, ends=2)
    assert half < shard_bytes(spec, 1, spec.kv_heads, spec.mlp_blocks, ends=2)
    return Part("one", half), Part("two", half)


def two_hosts(lab: Laboratory) -> tuple[Host, Host]:
    """Hosts on one network."""
    network = lab.network(FIRST)
    hosts = lab.host("one"), lab.host("two")
    for number, host in enumerate(hosts):
        lab.attach(host, network, number + 1)
    return hosts


def group_ends(node: NodeProcess) -> set[tuple[str, str]]:
    """Addresses, here and there, between which the worker of a node talks to its group."""
    family = psutil.Process(node.process.pid).children(recursive=True)
    workers = [each.pid for each in family if "node.worker" in each.cmdline()]
    return set().union(*map(connections_of, workers))


def test_a_group_over_two_hosts_serves_a_layer_that_neither_can_hold(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    folder = model_of(tmp_path / "model", layers=1)
    pair = pair_on(two_hosts(lab), halves(folder), nodes, folder)
    ranks = {re.search(r"rank \d of \d", said)[0] for said in pair.plans()}  # type: ignore[index]
    assert ranks == {"rank 0 of 2", "rank 1 of 2"}
    assert pair.answer() == expected(TEXT, NEW, folder)
    assert group_ends(pair.started[0]) == {(f"{FIRST}.1", f"{FIRST}.2")}


def test_a_pipeline_over_two_hosts_serves_exact_tokens(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    folder = model_of(tmp_path / "model", layers=4)
    spec = read_spec(folder, str(folder))
    half = shard_bytes(spec, 2, spec.kv_heads, spec.mlp_blocks, ends=1)
    pair = pair_on(two_hosts(lab), (Part("one", half), Part("two", half)), nodes, folder)
    assert {said.partition(" of")[0] for said in pair.plans()} == {"layers 0-1", "layers 2-3"}
    assert pair.answer() == expected(TEXT, NEW, folder)


def test_a_group_forms_at_the_addresses_that_its_nodes_announce(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """Each host has the same address at home, where it dials only itself."""
    folder = model_of(tmp_path / "model", layers=1)
    hosts, shared = (lab.host("one"), lab.host("two")), lab.network(SECOND)
    announced = []
    for number, host in enumerate(hosts):
        lab.attach(host, lab.network(FIRST), 7)
        address = lab.attach(host, shared, number + 1)
        at = f"/ip4/{address}/tcp/{PORT}"
        announced.append(["--port", str(PORT), "--announce", at])
    pair = pair_on(hosts, halves(folder), nodes, folder, *announced)
    assert pair.answer() == expected(TEXT, NEW, folder)
    assert group_ends(pair.started[0]) == {(f"{SECOND}.1", f"{SECOND}.2")}
