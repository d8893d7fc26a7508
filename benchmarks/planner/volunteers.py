"""Volunteers: a synthetic cluster of so many peers, for measuring how the planner grows."""

import json
import random
from pathlib import Path
from typing import Any

GPUS = ("3060-12G", "3070", "2080Ti", "3090", "3090Ti", "4090", "5090", "A4000", "A5000")
WEIGHTS = (6, 4, 3, 6, 2, 6, 3, 2, 1)
REGIONS = ("eu", "us-east", "us-west", "asia", "sa")
UP_MBPS = (50, 100, 200, 500)


def volunteers(
    peers: int, model: str = "llama-2-70b", seed: int = 0, region: str = ""
) -> dict[str, Any]:
    """One instance of a cluster file: single-GPU machines in five regions, half behind NAT."""
    draw = random.Random(seed)
    machines = [_machine(number, draw, region) for number in range(peers)]
    pairs = [
        {"a": a, "b": b, "lat_ms": draw.choice([40, 60, 80, 110, 150]), "bw_Gbps": 0.3}
        for i, a in enumerate(REGIONS)
        for b in REGIONS[i + 1 :]
    ]
    return {
        "id": f"volunteers-{peers}",
        "model": model,
        "machines": machines,
        "network": {
            "same_region": {"lat_ms": 12, "bw_Gbps": 0.5},
            "inter_region_default": None,
            "inter_region_pairs": pairs,
        },
        "workload": {"kind": "single", "input_tokens": [512], "output_tokens": [128]},
    }


def _machine(number: int, draw: random.Random, region: str) -> dict[str, Any]:
    return {
        "id": f"peer-{number}",
        "gpu": draw.choices(GPUS, WEIGHTS)[0],
        "count": 1,
        "region": region or draw.choice(REGIONS),
        "intra": {"kind": "none"},
        "nat": draw.random() < 0.5,
        "up_Mbps": draw.choice(UP_MBPS),
        "down_Mbps": draw.choice((100, 500, 1000)),
    }


def write_volunteers(path: Path, source: Path, peers: int, seed: int = 0) -> str:
    """Write a cluster file with that one instance beside the source's GPUs; returns its id."""
    data = json.loads(source.read_text())
    instance = volunteers(peers, seed=seed)
    path.write_text(json.dumps(data | {"instances": [instance]}))
    return str(instance["id"])
