"""`swarm serve`: from its flags to an answer over HTTP, and to its end by a signal."""

import argparse
import os
import signal
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from client.cli.commands import main, parser
from client.cli.serve import allowed_hosts_of, api_keys_of
from client.gateway.server import listen
from swarm.errors import BadInput
from tests.client.cli.test_commands import JOIN, connect, draw


def given(*words: str) -> argparse.Namespace:
    return parser().parse_args(["serve", *words])


def test_it_serves_until_a_signal_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = listen("127.0.0.1", 0)  # already: whoever asks waits for the server to begin
    monkeypatch.setattr("client.gateway.server.listen", lambda host, port: sock)
    port, heard = sock.getsockname()[1], []

    def ask_and_end() -> None:
        heard.append(first_answer(port))
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask_and_end, daemon=True)
    asking.start()
    words = ["serve", *JOIN, "--port", str(port), "--served-model-name", "mine", "--timeout", "5"]
    assert main(words, draw, connect) == 0
    asking.join()
    assert b'"id":"mine"' in heard[0]
    assert capsys.readouterr().out == f"serving mine at http://127.0.0.1:{port}/v1\n"


def first_answer(port: int) -> bytes:
    """What it says."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as asking:
        asking.request("GET", "/v1/models")
        return asking.getresponse().read()


def test_an_open_door_to_everybody_must_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_API_KEY", raising=False)
    with pytest.raises(BadInput, match="could ask without a key"):
        api_keys_of(given("--host", "0.0.0.0"))
    assert api_keys_of(given("--host", "0.0.0.0", "--no-api-key")) == ()
    assert api_keys_of(given()) == api_keys_of(given("--host", "::1")) == ()
    assert api_keys_of(given("--api-key", "a", "--api-key", "b")) == ("a", "b")
    monkeypatch.setenv("SWARM_API_KEY", "secret")
    assert api_keys_of(given("--host", "0.0.0.0")) == ("secret",)


def test_without_a_key_the_server_has_no_names_but_those_of_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SWARM_API_KEY", raising=False)
    assert allowed_hosts_of(given()) == {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts_of(given("--api-key", "a")) == set()
    assert allowed_hosts_of(given("--allowed-hosts", "a.example")) == {"a.example"}


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.cli.serve.NEEDED", ("fastapi", "no_such_package"))
    with pytest.raises(BadInput, match=r"needs no_such_package\. .*\[gateway\]"):
        main(["serve", *JOIN], draw, connect)


def test_what_make_installs_has_exact_versions() -> None:
    root = Path(__file__).parents[3]
    exact = (root / "constraints.txt").read_text().lower().replace("_", "-")
    assert all(f"\n{name}==" in exact for name in ("fastapi", "uvicorn", "prometheus-client"))
    assert "--editable .[gateway]" in (root / "Makefile").read_text()
