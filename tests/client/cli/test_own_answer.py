"""`swarm generate` through the node on this machine: the same words, and no network of its own."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.cli import own_answer
from client.cli.commands import main
from client.cli.own_answer import Pieces
from client.network import Connect
from swarm.checkpoint.folder import find_model, read_spec
from swarm.errors import BadInput, BadSampling, NoRoute, SwarmError, Unreachable
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.records import Advert, Member, StageAdvert, record_to_list
from swarm.testing.memory_network import peer_named
from swarm.wire.token_ids import ids_of_bytes
from tests.client.cli.test_commands import connect

SPEC = read_spec(find_model(BUILT_IN), BUILT_IN)
INVITE = Invite((f"/ip4/127.0.0.1/tcp/1/p2p/{peer_named('one')}",), "forest", BUILT_IN, "a key")
STAGE = StageAdvert(0, SPEC.layers, [Member(peer_named("one"), 0, 2, 1)], 0.01, 100, 0)
END = {
    "finish": "length",
    "route": record_to_list(Advert(SPEC.digest, [STAGE], 0)),
    "timings": [[0, SPEC.layers, 0.1, 0.2, 0.3]],
    "replays": 1,
    "drafted": 4,
    "accepted": 2,
    "cached_tokens": 1,
}
FACTS = {"swarm": "forest", "spec": SPEC.to_json(), "folder": str(find_model(BUILT_IN))}
IDS = [72, 73, 74, 75, 76]


class OwnNode:
    """Stands for a node at its socket."""

    def __init__(self) -> None:
        self.folder = Path("state/node-1")
        self.facts: dict[str, Any] | SwarmError = dict(FACTS)
        self.answers: list[dict[str, Any] | SwarmError] = [
            *({"ids": [token]} for token in IDS),
            {"end": END},
        ]
        self.asked: list[dict[str, Any]] = []
        self.stops = 0

    def ask(self, order: str, **_words: object) -> dict[str, Any]:
        assert order == "model"
        if isinstance(self.facts, SwarmError):
            raise self.facts
        return self.facts

    @contextmanager
    def ask_for_all(
        self, order: str, **words: Any
    ) -> Iterator[tuple[Iterator[dict[str, Any]], Callable[[], None]]]:
        assert order == "generate"
        self.asked.append(words)
        yield self._answers(), self._stop

    def _answers(self) -> Iterator[dict[str, Any]]:
        for answer in self.answers:
            if isinstance(answer, SwarmError):
                raise answer
            yield answer

    def _stop(self) -> None:
        self.stops += 1


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> OwnNode:
    made = OwnNode()
    monkeypatch.setattr(own_answer, "local_nodes", lambda _state: [made])
    monkeypatch.setenv("SWARM_INVITE", INVITE.encode())
    return made


class AnotherWay(SwarmError):
    """A network of its own was asked for."""


def no_network(_invite: Invite) -> Any:
    raise AnotherWay("A network of its own.")


def generate(*words: str, connect: Connect = no_network) -> int:
    return main(["generate", "Once", "--max-tokens", "5", *words], lambda *_: "", connect)


def test_the_answer_is_the_nodes_and_no_network_is_opened(
    node: OwnNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--seed", "3", "--temperature", "1") == 0
    text = capsys.readouterr().out
    assert len(text) > len(IDS)
    (asked,) = node.asked
    assert asked["model"] == SPEC.digest
    assert ids_of_bytes(asked["ids"])
    assert asked["sampling"]["max_tokens"] == 5
    assert asked["sampling"]["seed"] == 3
    generate("--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["text"] + "\n", told["token_ids"]) == (text, IDS)
    assert (told["finish_reason"], told["replays"], told["accepted"]) == ("length", 1, 2)
    assert told["cached_tokens"] == 1
    assert told["prompt_tokens"] == len(ids_of_bytes(asked["ids"]))
    assert told["route"][0]["end"] == SPEC.layers
    assert told["timings"][0]["network_seconds"] == 0.3


def test_a_stop_string_ends_the_answer_at_the_node_too(
    node: OwnNode, capsys: pytest.CaptureFixture[str]
) -> None:
    generate()
    whole = capsys.readouterr().out.removesuffix("\n")
    generate("--json", "--stop", whole[1:3])
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["finish_reason"]) == (whole[:1], "stop")
    assert node.stops == 1
    assert len(told["token_ids"]) < len(IDS)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (BadSampling("top_p is 2;", "smaller.", option="top_p"), BadInput, "--top-p is 2"),
        (NoRoute("Nobody serves layer 3."), NoRoute, "Nobody serves"),
    ],
)
def test_what_the_swarm_says_to_a_question_is_final(
    node: OwnNode, error: SwarmError, kind: type[SwarmError], says: str
) -> None:
    node.answers.insert(2, error)
    with pytest.raises(kind, match=says):
        generate()


def test_a_bad_question_is_refused_before_the_node_is_troubled(node: OwnNode) -> None:
    with pytest.raises(BadInput, match="--max-tokens"):
        generate("--max-tokens", "100000")
    assert node.asked == []


@pytest.mark.parametrize(
    "facts",
    [
        Unreachable("The node does not answer."),
        SwarmError("This node knows no order 'model'."),
        FACTS | {"swarm": "another"},
        FACTS | {"spec": {"name": "of a later version"}},
        FACTS | {"spec": 5},
        {"swarm": "forest"},
        {},
    ],
)
def test_a_node_of_another_swarm_or_version_is_passed_over(
    node: OwnNode, facts: dict[str, Any] | SwarmError
) -> None:
    node.facts = facts
    with pytest.raises(AnotherWay):
        generate()
    assert node.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["--join", INVITE.encode()],
        ["--model", BUILT_IN],
        ["--introduce"],
        ["--trusted-ends", peer_named("one")],
    ],
)
def test_what_is_a_clients_own_choice_asks_for_a_client(node: OwnNode, words: list[str]) -> None:
    with pytest.raises(AnotherWay):
        generate(*words)
    assert node.asked == []


@pytest.mark.parametrize("count", [0, 3, len(IDS)])
def test_a_node_that_ends_in_mid_answer_costs_no_word_and_repeats_none(
    node: OwnNode, count: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ["--raw-bytes", "--model", BUILT_IN]
    generate(*alone, connect=connect)
    reference = capsys.readouterr().out
    generate("--json", *alone, connect=connect)
    ids = json.loads(capsys.readouterr().out)["token_ids"]
    monkeypatch.setattr("client.cli.terminal.Terminal.is_terminal", True)
    lost = Unreachable("The node does not answer.")
    node.answers = [*({"ids": [token]} for token in ids[:count]), lost]
    generate("--raw-bytes", connect=connect)
    assert len(node.asked) == 1
    assert capsys.readouterr().out == reference


def test_an_answer_by_chance_is_not_sewn_together_of_two(node: OwnNode) -> None:
    node.answers = [{"ids": [72]}]  # and then the node ends
    with pytest.raises(Unreachable, match="ended before the answer did"):
        generate("--temperature", "1")
    with pytest.raises(AnotherWay):
        generate("--temperature", "1", "--seed", "5")
    node.answers = []
    with pytest.raises(AnotherWay):
        generate("--temperature", "1")


def test_an_end_that_makes_no_sense_is_a_node_that_ended(node: OwnNode) -> None:
    for end in ({}, END | {"route": 5}, END | {"timings": [[1]]}, END | {"replays": None}):
        node.answers[-1] = {"end": end}
        with pytest.raises(AnotherWay):
            generate()


@pytest.mark.parametrize("first", [[], ["ab"], ["ab", "cd"], ["a", "bcde"]])
def test_pieces_that_come_again_are_shown_once(first: list[str]) -> None:
    shown: list[str] = []
    pieces = Pieces(shown.append)
    for piece in first:
        pieces(piece)
    pieces.begin_again()
    for piece in ("abc", "", "de", "fg"):
        pieces(piece)
    assert "".join(shown) == "abcdefg"
    assert all(shown)
