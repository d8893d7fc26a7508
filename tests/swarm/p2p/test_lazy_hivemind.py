"""LazyHivemind: what nodes and commands load of hivemind, and that nothing is another thing."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from swarm.p2p.lazy_hivemind import PACKAGES, modules_of, names_made_by

NETWORK = "import swarm.p2p.libp2p_channel, swarm.dht.dht_board"
HEAVY = ("torch", "transformers", "hivemind.averaging", "hivemind.moe", "hivemind.optim")


def told(program: str) -> object:
    """What a fresh Python prints as JSON at the end of a program."""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(found.stdout)


def test_board_and_channel_load_nothing_that_only_training_needs() -> None:
    loaded = (
        f"{NETWORK}; import sys, json; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    )
    assert told(loaded) == []


def test_every_name_of_a_package_is_the_one_that_hivemind_itself_would_give() -> None:
    origins = {}
    for package in sorted(PACKAGES - {"hivemind"}):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        origins[package] = modules_of(Path(spec.origin).read_text(encoding="utf-8"))
    assert origins["hivemind.p2p"]["P2P"] == "hivemind.p2p.p2p_daemon"
    assert origins["hivemind.utils"]["MSGPackSerializer"] == "hivemind.utils.serializer"
    program = (
        f"{NETWORK}\n"
        "import json\n"
        "from importlib import import_module as module\n"
        f"names = {origins!r}\n"
        "wrong = [f'{p}.{n}' for p, of in names.items() for n, m in of.items()\n"
        "  if getattr(module(p), n) is not getattr(module(m), n)]\n"
        "print(json.dumps(wrong))"
    )
    assert told(program) == []


def test_a_name_that_its_init_makes_itself_is_there_as_well() -> None:
    asked = f"{NETWORK}; import hivemind, json; print(json.dumps(hivemind.__version__))"
    assert told(asked) == version("hivemind")


@pytest.mark.parametrize(
    "source", ["import torch\n", "from . import near\n", "from far import name as other\n"]
)
def test_only_plain_imports_of_names_count(source: str) -> None:
    assert modules_of(source) == {}


def test_whatever_an_init_makes_itself_counts_as_made() -> None:
    source = "import torch\nA = 1\nB: int = 2\ndef c(): ...\nclass D: ...\nfrom far import E\n"
    assert names_made_by(source) == {"A", "B", "c", "D"}
