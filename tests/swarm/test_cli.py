"""The command line: bad input is one sentence, exit code 2, and never a traceback."""

import json
from pathlib import Path

import pytest

from swarm import __version__
from swarm.cli import COMMANDS, main
from swarm.invites import Invite
from swarm.trust.identity import Identity

PEER = Identity.throwaway().peer
INVITE = Invite((f"/ip4/127.0.0.1/tcp/9/p2p/{PEER}",), "nowhere-abcdefgh", "swarm-tiny").encode()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_STATE", str(tmp_path))
    monkeypatch.delenv("SWARM_INVITE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refused command."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    return line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"swarm {__version__}\n"


def test_unknown_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command 'frobnicate'" in refusal(capsys, "frobnicate")
    assert "--frob" in refusal(capsys, "generate", "hello", "--frob")
    assert "invalid int" in refusal(capsys, "generate", "hello", "--max-tokens", "many")


def test_without_an_invite_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "hello"], ["chat"], ["status"], ["plan"]):
        assert "--join INVITE" in refusal(capsys, *command)


@pytest.mark.parametrize("text", ["hello", "swarm1:AAAA", "swarm2:AAAA"])
def test_malformed_invites(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "invite" in refusal(capsys, "generate", "hello", "--join", text).lower()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "-1"], "--temperature "),
        (["--top-p", "0"], "--top-p "),
        (["--top-k", "-2"], "--top-k "),
        (["--min-p", "3"], "--min-p "),
        (["--repetition-penalty", "0"], "--repetition-penalty "),
        (["--seed", "-1"], "--seed "),
        (["--max-tokens", "0"], "--max-tokens "),
        (["--stop", ""], "--stop "),
        (["--timeout", "0"], "--timeout "),
    ],
)
def test_options_out_of_range(
    capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert says in refusal(capsys, "generate", "hello", "--join", INVITE, *flags)


def test_prompts_that_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert "empty" in refusal(capsys, "generate", "", "--join", INVITE)
    long = refusal(capsys, "generate", "word " * 5000, "--join", INVITE)
    assert "2048" in long


def test_models_that_cannot_be_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def say(model: str) -> str:
        return refusal(capsys, "generate", "hello", "--join", INVITE, "--model", model)

    assert "no config.json" in say(str(tmp_path))
    assert "no folder" in say(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "'mamba' is not supported" in say(str(tmp_path))
    assert "hub" in say("no-such-model-here")


def test_an_unreachable_swarm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "answers" in refusal(capsys, "generate", "hello", "--join", INVITE)


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swarm.cli.import_package", interrupt)
    assert main(["status"]) == 130
