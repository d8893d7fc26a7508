"""Hosts that are far apart: nodes measure their links, and the plan is what those call for."""

from pathlib import Path
from typing import Any

import pytest

from swarm.checkpoint.folder import read_spec
from tests.network.conftest import model_of
from tests.network.hosted_swarm import swarm_on
from tests.network.laboratory import Laboratory
from tests.network.wire import MBIT
from tests.whole.swarms import Nodes, Part, shard_bytes

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
]  # needs cores that do nothing else: it measures

PREFIX = "11.0.0"
FAR_SECONDS, SLOW = 0.02, 20 * MBIT  # one way
NEAR = 0.3  # a share that a figure may be off


def share_of(model: Path, layers: int, ends: int) -> int:
    """Memory for so many layers and ends."""
    spec = read_spec(model, str(model))
    return shard_bytes(spec, layers, spec.kv_heads, spec.mlp_blocks, ends=ends)


def links_between(status: dict[str, Any], one: str, other: str) -> list[dict[str, Any]]:
    """What both say of the link between them, by their names."""
    names = {peer["peer"]: peer["name"] for peer in status["peers"]}
    return [
        link
        for peer in status["peers"]
        for link in peer["links"]
        if {peer["name"], names.get(link["peer"])} == {one, other}
    ]


def trip(link: dict[str, Any]) -> float:
    """Seconds there and back; a busy machine makes them more, never less."""
    seconds: float = link["round_trip_seconds"]
    return seconds


def serving(status: dict[str, Any]) -> set[str]:
    """The names of those that have a part."""
    names = {peer["peer"]: peer["name"] for peer in status["peers"]}
    return {names[each["peer"]] for stage in status["stages"] for each in stage["members"]}


def test_of_three_hosts_the_two_that_are_near_serve_what_they_can_hold(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """Founder and second hold too little together, and either is enough for the third.

    The founder is far from both. All links were 40 ms and 12 MB/s, had nobody measured them.
    """
    model, wire = model_of(tmp_path / "model", layers=8), lab.wire(PREFIX)
    hosts = [lab.host(name) for name in ("far", "near", "third")]
    far, near, third = (lab.attach(host, wire, at + 1) for at, host in enumerate(hosts))
    for other in (near, third):
        wire.between(far, other, delay_seconds=FAR_SECONDS, bytes_per_second=SLOW)
    sizes = [share_of(model, 3, 1), share_of(model, 3, 1), share_of(model, 5, 1)]
    parts = [Part(host.name, size) for host, size in zip(hosts, sizes, strict=True)]
    swarm = swarm_on(hosts, parts, nodes, model)
    swarm.wait_until_ready(1, 2)
    status = swarm.seen_from(hosts[1])
    assert serving(status) == {"near", "third"}
    for other in ("near", "third"):
        links = links_between(status, "far", other)
        rates = [link["bytes_per_second"] for link in links]
        assert max(rates) == pytest.approx(SLOW, rel=NEAR)
        assert min(map(trip, links)) >= 2 * FAR_SECONDS
        assert min(map(trip, links)) > min(map(trip, links_between(status, "near", "third")))
    assert swarm.answer_on(hosts[0]) == swarm.expected()
