"""Commands against a scripted swarm: what they print, and nothing else."""

import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from client.cli.commands import main
from client.network import Links
from swarm.checkpoint.folder import find_model, read_spec
from swarm.errors import BadInput, BadInvite, NoRoute
from swarm.hardware import Device
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.plan import Plan
from swarm.records import Capability
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import Identity
from tests.client.scripted import ScriptedSwarm

SPEC = read_spec(find_model(BUILT_IN), BUILT_IN)
ADDRESS = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.throwaway().peer}"
JOIN = ["--join", Invite((ADDRESS,), "forest-abcdefgh", BUILT_IN).encode()]
DEVICE = Device(0, "cpu", "CPU", 10**9, 1e9, 1e9)


@asynccontextmanager
async def connect(invite: Invite) -> AsyncIterator[Links]:
    """Two stages of the built-in model, by name."""
    swarm = ScriptedSwarm(spec=SPEC)
    for name, start, end in (("oak", 0, 5), ("elm", 5, 8)):
        stage = await swarm.stage(name, start, end)
        known = Capability(SPEC.digest, [DEVICE], [], "host", True, 0.0, name=name)
        await stage.board.publish(known)
    async with swarm.connect(invite) as links:
        yield links


def draw(plan: Plan, names: object) -> str:
    return f"{plan} {names}"


def test_generate_prints_the_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Once", *JOIN, "--max-tokens", "5"], draw, connect) == 0
    shown = capsys.readouterr()
    assert len(shown.out.strip()) > 3
    assert shown.err == ""


class Pipe:
    """Standard input with these bytes in it, or a terminal where nobody has typed yet."""

    def __init__(self, data: bytes, *, is_terminal: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("prompt", [[], ["-"]])
def test_a_prompt_may_be_piped_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, prompt: list[str]
) -> None:
    def shown(*words: str) -> str:
        assert main(["generate", *words, *JOIN, "--max-tokens", "5"], draw, connect) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "stdin", Pipe("Öne\n".encode()))
    assert shown(*prompt) == shown("Öne")


@pytest.mark.parametrize(
    ("pipe", "says"),
    [
        (Pipe(b"", is_terminal=True), "There is no prompt"),
        (Pipe(b"\n"), "The prompt is empty"),
        (Pipe(b"caf\xe9"), "not valid UTF-8 at byte 4"),
        (Pipe(b"x" * ((1 << 24) + 1)), "too long"),
    ],
)
def test_what_is_piped_in_must_be_a_prompt(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", pipe)
    with pytest.raises(BadInput, match=says):
        main(["generate", *JOIN], draw, connect)


def test_generate_prints_one_object_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "Once", *JOIN, "--max-tokens", "5", "--json", "--temperature", "0"]
    assert main(arguments, draw, connect) == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["token_ids"]) == 5
    assert values["finish_reason"] == "length"
    assert [(stage["start"], stage["end"]) for stage in values["route"]] == [(0, 5), (5, 8)]
    assert set(values["route"][0]["shards"][0]) == {"peer", "device", "kv", "mlp"}
    assert values["text"]
    assert 0 < values["ttft_seconds"] < 5
    assert values["tokens_per_second"] > 0


def test_status_names_peers_and_what_they_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *JOIN], draw, connect) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["forest-abcdefgh serves swarm-tiny", "planner: none elected yet"]
    assert any(line.startswith("oak") and line.endswith("0-4") for line in lines)


def test_status_is_one_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", *JOIN], draw, connect) == 0
    values = json.loads(capsys.readouterr().out)
    assert {peer["name"] for peer in values["peers"]} == {"oak", "elm"}
    assert [(stage["start"], stage["end"]) for stage in values["stages"]] == [(0, 5), (5, 8)]
    assert (values["planner"], values["term"]) == ("", 0)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-tokens", "3000000", r"--max-tokens is 3000000; .*\[1, 2047\].* 2048 tokens"),
        ("--max-tokens", "0", "--max-tokens is 0;"),
        ("--top-k", "-1", "--top-k is -1;"),
        ("--repetition-penalty", "0", "--repetition-penalty is 0.0;"),
        ("--timeout", "0", "--timeout is 0.0;"),
    ],
)
def test_an_option_is_refused_under_the_name_that_was_typed(
    option: str, value: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        main(["generate", "Once", *JOIN, option, value], draw, connect)


@asynccontextmanager
async def nobody(invite: Invite) -> AsyncIterator[Links]:
    """Peers that have no record of the swarm: it is over, or has another key."""
    async with ScriptedSwarm(spec=SPEC).connect(invite) as links:
        yield links


@pytest.mark.parametrize("command", ["status", "plan"])
def test_a_swarm_that_nobody_knows_is_said_to_be_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("client.cli.look.KNOWN_SECONDS", 0.0)
    with pytest.raises(BadInvite, match=r"nothing of its swarm\. Ask for a new") as told:
        main([command, *JOIN], draw, nobody)
    assert told.value.exit_code == 2
    assert capsys.readouterr().out == ""


def test_status_says_why_devices_are_idle(capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def with_spare(invite: Invite) -> AsyncIterator[Links]:
        async with connect(invite) as links:
            known = Capability(SPEC.digest, [DEVICE], [], "host", True, 0.0, name="ash")
            world = links.board._world  # type: ignore[attr-defined]
            await world.board(peer_named("ash")).publish(known)
            yield links

    assert main(["status", *JOIN], draw, with_spare) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "idle: ash: no planner is elected yet"
    assert main(["status", *JOIN, "--json"], draw, with_spare) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["idle"] == {f"{peer_named('ash')}/0": "no planner is elected yet"}


def test_plan_says_that_there_is_none_yet() -> None:
    with pytest.raises(NoRoute, match="no plan yet"):
        main(["plan", *JOIN], draw, connect)
