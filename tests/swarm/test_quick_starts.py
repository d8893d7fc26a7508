"""Commands load what they need when they need it: help, wrong flags and looks are quick."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "hivemind", "scipy", "numba")
LOADED = f"import json, sys; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"


def loaded_by(program: str) -> list[str]:
    """Which heavy packages a fresh Python has loaded after a program."""
    found = subprocess.run(
        [sys.executable, "-c", f"{program}\n{LOADED}"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    loaded: list[str] = json.loads(found.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("flag", ["--help", "--bogus"])
@pytest.mark.parametrize(
    "command", ["demo", "node", "generate", "chat", "serve", "status", "plan", "simulate"]
)
def test_help_and_a_wrong_flag_load_nothing_heavy(command: str, flag: str) -> None:
    run = f"from swarm.cli import main\ntry: main([{command!r}, {flag!r}])\nexcept SystemExit: pass"
    assert loaded_by(run) == []


def test_a_look_at_a_swarm_loads_no_torch_and_no_tokenizer() -> None:
    assert not {"torch", "transformers"} & set(loaded_by("import client.cli.look"))


def test_a_node_leaves_torch_and_transformers_to_its_workers() -> None:
    assert not {"torch", "transformers", "numba"} & set(loaded_by("import node.main"))


def test_the_public_names_of_client_are_loaded_when_they_are_asked_for() -> None:
    assert loaded_by("import client; client.Invite, client.NoRoute") == []
    everything = "import client; assert all(getattr(client, name) for name in client.__all__)"
    assert not {"torch", "transformers"} & set(loaded_by(everything))  # not before a tokenizer is
    tokenizer = f"{everything}; client.text.tokenizer._load(None)"
    assert "transformers" in loaded_by(f"{everything}\ntry: {tokenizer}\nexcept Exception: pass")
    assert loaded_by("import client; assert 'generate' in dir(client)") == []
