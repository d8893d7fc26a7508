"""The link between two stages is cut while a client reaches both: it carries the steps itself."""

import time
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from tests.network.conftest import model_of
from tests.network.hosted_swarm import swarm_on
from tests.network.laboratory import Laboratory
from tests.whole.swarms import Nodes, Part, shard_bytes, wait_until

pytestmark = pytest.mark.network

PREFIX = "11.0.0"
APART_SECONDS = 0.02  # one way
MANY = 250  # tokens
CUT_SECONDS = 30.0
RELAYED_SECONDS = 5.0  # a client that hears nothing for so long would begin again elsewhere


@pytest.mark.parametrize("ways", ["both", "onwards"])
def test_steps_pass_through_the_client_while_the_link_between_the_stages_is_cut(
    lab: Laboratory, nodes: Nodes, tmp_path: Path, ways: str
) -> None:
    wire, model = lab.wire(PREFIX), model_of(tmp_path / "model", layers=4)
    hosts = [lab.host(name) for name in ("one", "two", "person")]
    one, two, _ = (lab.attach(host, wire, at + 1) for at, host in enumerate(hosts))
    wire.everywhere(delay_seconds=APART_SECONDS)
    spec = read_spec(model, str(model))
    half = shard_bytes(spec, 2, spec.kv_heads, spec.mlp_blocks, ends=1)
    swarm = swarm_on(hosts[:2], [Part("one", half), Part("two", half)], nodes, model)
    swarm.wait_until_ready()
    swarm.invite = swarm.nodes[1].remembered_invite()  # of both
    asking = swarm.ask_from(hosts[2], MANY)
    asking.wait_for_pieces(10)
    began = time.monotonic()
    if ways == "both":
        wire.cut(one, two)
    else:
        wire.cut_one_way(one, two)
    wait_until(
        lambda: asking.process.poll() is not None or time.monotonic() - began > CUT_SECONDS,
        2 * CUT_SECONDS,
    )
    wire.heal()
    assert asking.ids() == swarm.expected(MANY)
    print(f"pause of {asking.longest_pause:.2f} s, {ways}")  # noqa: T201 - a figure to write down
    assert asking.longest_pause < RELAYED_SECONDS
