"""A machine that is revoked while the network is parted: out when it heals, and told so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swarm.checkpoint.folder import read_spec
from tests.network.conftest import model_of
from tests.network.hosts import Host
from tests.network.laboratory import Laboratory
from tests.whole.swarms import (
    START_SECONDS,
    NodeProcess,
    Nodes,
    Part,
    environment,
    shard_bytes,
    wait_until,
)

pytestmark = [pytest.mark.network, pytest.mark.slow]

TOLD_SECONDS = 90.0  # after the network has healed: a try to come back may be 45 s away
REVOKED = "This machine was revoked"


def commanded(host: Host, state: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """A command on a host, by the machine whose state is there."""
    return subprocess.run(
        [*host.command, sys.executable, "-m", "swarm", *words, "--state", str(state)],
        env=environment(state.parent),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def status(host: Host, node: NodeProcess) -> dict[str, str]:
    """Who is there by name, as a person beside a node sees it."""
    done = commanded(host, node.state, "status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {each["name"]: each["peer"] for each in found["peers"]}


def test_a_machine_that_was_away_when_it_was_revoked_stays_out_and_hears_why(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    model, wire = model_of(tmp_path / "model", layers=2), lab.wire("11.0.0")
    home, away = lab.host("home"), lab.host("away")
    at = [lab.attach(host, wire, number) for number, host in enumerate((home, away), start=1)]
    spec = read_spec(model, str(model))
    size = shard_bytes(spec, spec.layers, spec.kv_heads, spec.mlp_blocks, ends=2)
    how = ("--host", "--key", "--model", str(model))
    founder = nodes.start_behind(home.command, Part("founder", size), *how)
    invite = founder.line("invite:")
    guest = nodes.start_behind(away.command, Part("guest", size), "--join", invite)
    guest.line("swarm: ")
    wait_until(lambda: status(home, founder).keys() == {"founder", "guest"}, START_SECONDS)
    peer = status(home, founder)["guest"]

    wire.part(at[:1], at[1:])
    wait_until(lambda: status(home, founder).keys() == {"founder"}, START_SECONDS)
    done = commanded(home, founder.state, "revoke", peer)
    assert done.returncode == 0, done.stderr
    assert f"revoked {peer}: told 1 peers" in done.stdout
    assert guest.is_alive, "nobody could tell it"
    wire.heal()

    wait_until(lambda: not guest.is_alive, TOLD_SECONDS, guest.said)
    assert REVOKED in guest.said()
    assert status(home, founder).keys() == {"founder"}
    for words in (("status",), ("generate", "Once")):  # a person beside it
        said = commanded(away, guest.state, *words)
        assert said.returncode != 0
        assert f"{REVOKED}: the swarm has nothing to do with it any more" in said.stderr
    other = commanded(away, tmp_path / "another", "status", "--join", invite)
    assert "The invite is void: a machine was revoked after it was made" in other.stderr
