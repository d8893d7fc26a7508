"""Orders for the node on this machine, and the status of a swarm as that node sees it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.cli import orders, own_node
from client.cli.commands import main
from client.network import Connect
from swarm.errors import BadInput, SwarmError, Unreachable
from swarm.hardware import Device
from swarm.invites import Invite
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Advert, Capability, Lease, Member, StageAdvert, record_to_list
from swarm.testing.memory_network import peer_named

ONE, TWO = peer_named("one"), peer_named("two")
INVITE = Invite((f"/ip4/127.0.0.1/tcp/1/p2p/{ONE}",), "forest-abc", "swarm-tiny", "a key")
DEVICE = Device(0, "cpu", "CPU", 2_000_000, 1e9, 2e9)
PLAN = Plan((Pipeline((Stage(0, 6, (Shard(f"{ONE}/0", 1, 1),)),)),))
STAGE = StageAdvert(0, 6, [Member(ONE, 0, 1, 1)], 0.01, 100, 0)


def answer_of(paused: str = "") -> dict[str, Any]:
    """What a node answers that serves beside one whose owner has paused it."""
    document = {"term": 3, "planner": ONE, "plan": PLAN.to_json()}
    facts = {
        "peer": ONE,
        "name": "oak",
        "swarm": INVITE.swarm,
        "sessions": 2,
        "devices": [{"index": 0, "holds": "serves layers 0-5"}],
        "plan": json.dumps(document).encode(),
        "paused": paused,
    }
    capabilities = {
        ONE: Capability("m", [DEVICE], [], "host", True, 0.0, name="oak"),
        TWO: Capability("m", [], [], "host", True, 0.0, name="ash", paused=True),
    }
    records = {
        "capability": {peer: record_to_list(each) for peer, each in capabilities.items()},
        "advert": {ONE: record_to_list(Advert("m", [STAGE], 3))},
        "planner": {ONE: record_to_list(Lease(3, 2.0**40))},
        "relay": {},
    }
    return {"node": facts, "records": records}


@dataclass
class OwnNode:
    """Stands for a node at its socket."""

    answers: dict[str, Any]
    folder: Path = Path("state/node-1")
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    leaves: bool = True

    def ask(self, order: str, **words: object) -> dict[str, Any]:
        self.asked.append((order, words))
        answer = self.answers[order]
        if isinstance(answer, SwarmError):
            raise answer
        return dict(answer)

    def ask_to_leave(self, _seconds: float) -> bool:
        return self.leaves


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> OwnNode:
    made = OwnNode(
        {
            "status": answer_of(),
            "pause": {"paused": "swarm pause", "seconds": 1.25},
            "resume": {"was": "swarm pause", "paused": ""},
        }
    )
    monkeypatch.setattr(own_node, "local_nodes", lambda _state: [made])
    monkeypatch.setattr(orders, "the_local_node", lambda _state, _name: made)
    return made


def no_network(_invite: Invite) -> Any:
    raise Unreachable("Nobody answers.")


def run(*words: str, connect: Connect = no_network) -> int:
    return main(words, lambda *_: "", connect)


def test_the_orders_say_what_has_come_of_them(
    node: OwnNode, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pause")
    run("pause", "--for", "90m")
    run("resume")
    run("leave")
    assert capsys.readouterr().out.splitlines() == [
        "node-1 is paused until `swarm resume`; its devices were free after 1.2 s",
        "node-1 is paused for 90 min; its devices were free after 1.2 s",
        "node-1 serves again",
        "node-1 has left",
    ]
    assert [words for order, words in node.asked if order == "pause"] == [{}, {"seconds": 5400.0}]


def test_a_node_that_hangs_while_it_leaves_is_an_error_with_a_next_step(node: OwnNode) -> None:
    node.leaves = False
    with pytest.raises(SwarmError, match="has not ended yet"):
        run("leave")


def test_who_has_no_node_here_is_told_so(tmp_path: Path) -> None:
    for order in ("pause", "resume", "leave"):
        with pytest.raises(BadInput, match="No node runs on this machine"):
            run(order, "--state", str(tmp_path))


def test_a_status_comes_from_the_own_node_without_a_network(
    node: OwnNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARM_INVITE", INVITE.encode())
    assert run("status") == 0
    said = capsys.readouterr().out
    assert "here: node-1: device 0 serves layers 0-5; 2 sessions" in said
    assert "planner: oak" in said
    assert next(line for line in said.splitlines() if line.startswith("ash")).endswith(
        "paused by its owner"
    )
    run("status", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["here"]["node"] == "node-1"
    assert {each["peer"]: each["paused"] for each in found["peers"]} == {ONE: False, TWO: True}
    assert node.asked == [("status", {})] * 2


def test_a_paused_node_says_so_first(
    node: OwnNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARM_INVITE", INVITE.encode())
    node.answers["status"] = answer_of("`pgrep -x game` succeeds")
    run("status")
    assert "here: node-1: paused (`pgrep -x game` succeeds)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        Unreachable("The node does not answer."),
        {"node": 5, "records": {}},
        {"node": answer_of()["node"] | {"swarm": "another"}, "records": {}},
        answer_of() | {"records": {"capability": {ONE: [1, 2, 3]}}},
        answer_of() | {"records": {"capability": 7}},
        answer_of() | {"node": answer_of()["node"] | {"plan": b"?"}},
    ],
    ids=["silent", "nonsense", "of another swarm", "strange record", "no records", "no plan"],
)
def test_a_node_that_cannot_tell_is_passed_over_for_the_network(
    node: OwnNode, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_INVITE", INVITE.encode())
    node.answers["status"] = answer
    with pytest.raises(Unreachable, match="Nobody answers"):
        run("status")


def test_an_invite_on_the_command_line_is_always_asked_about(node: OwnNode) -> None:
    with pytest.raises(Unreachable, match="Nobody answers"):
        run("status", "--join", INVITE.encode())
    assert node.asked == []
