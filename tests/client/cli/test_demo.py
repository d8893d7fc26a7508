"""The demo: four real nodes, an uneven plan, exact tokens, a clean end."""

import json
import subprocess
import sys

import pytest

from client.cli.reference_model import matching

RUN = "import sys; from swarm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1], 1), ([1, 2, 3], [1, 9, 3], 1)],
)
def test_matching_counts_from_the_start(one: list[int], other: list[int], count: int) -> None:
    assert matching(one, other) == matching(other, one) == count


@pytest.mark.nodes
def test_four_nodes_share_a_model_unevenly_and_exactly() -> None:
    command = [sys.executable, "-c", RUN, "demo", "--json", "--max-tokens", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome["exact"] is True
    assert outcome["tokens"] == 24
    assert outcome["complaints"] == []
    assert {peer["name"] for peer in outcome["peers"]} == {"large", "medium", "small", "tiny"}
    assert outcome["planner"] in {peer["peer"] for peer in outcome["peers"]}
    (pipeline,) = outcome["plan"]["pipelines"]
    stages = pipeline["stages"]
    assert len({stage["end"] - stage["start"] for stage in stages}) >= 2
    shares = [sorted(shard["kv"] for shard in stage["shards"]) for stage in stages]
    assert [3, 5] in shares
