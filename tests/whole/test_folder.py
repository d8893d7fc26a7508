"""A folder made with save_pretrained, over two nodes of a swarm with a key; and how nodes leave."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import client
from client.event_loop_thread import EventLoopThread
from client.network import open_links
from node.network import bootstrap
from swarm.checkpoint.folder import read_spec
from swarm.cli import main
from swarm.invites import Invite
from swarm.records import Advert, Capability
from tests.whole.conftest import Swarm
from tests.whole.reference_model import TINY, expected
from tests.whole.swarms import Part, flags_of, nodes_in, shard_bytes, wait_until

pytestmark = pytest.mark.nodes

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers and 4 KV heads, with the tokenizer of swarm-tiny."""
    made = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        hidden_size=48,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=320,  # 3 blocks, the last one short
        vocab_size=512,
        max_position_embeddings=768,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=2,
    )
    torch.manual_seed(3)
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(made)
    for name in TOKENIZER:
        copy(TINY / name, made / name)
    return made


@pytest.fixture(scope="module")
def swarm(folder: Path, loop_thread: EventLoopThread, tmp_path_factory: Any) -> Iterator[Swarm]:
    """A private swarm of two nodes, four layers and two."""
    spec = read_spec(folder, str(folder))
    whole = (spec.kv_heads, spec.mlp_blocks)
    four = Part("four", shard_bytes(spec, 4, *whole, ends=1))
    two = Part("two", shard_bytes(spec, 2, *whole, ends=1), slowdown=3.0)
    with nodes_in(tmp_path_factory.mktemp("private")) as nodes:
        host = nodes.start(four, "--host", "--model", str(folder), "--key", "open sesame")
        invite = host.line("invite:")
        other = nodes.start(two, "--join", invite)
        nodes.start(Part("speck", 20_000, more_kv=False), "--join", invite)
        host.line("ready:")
        other.line("ready:")
        with loop_thread.hold(client.Client(invite)) as asking:
            yield Swarm(nodes, invite, loop_thread, asking)


@pytest.mark.parametrize("prompt", ["Once upon a time", "x" * 300])
def test_greedy_tokens_are_those_of_the_whole_model(
    swarm: Swarm, folder: Path, prompt: str
) -> None:
    generation = swarm.loop_thread.run(swarm.client.generate(prompt, max_tokens=48))
    assert list(generation.token_ids) == expected(prompt, 48, folder)
    lengths = [stage.end - stage.start for stage in generation.route]
    assert sorted(lengths) == [2, 4]


def test_sampled_tokens_are_those_of_the_whole_model(swarm: Swarm, folder: Path) -> None:
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 30, "seed": 8}
    generation = swarm.loop_thread.run(swarm.client.generate("Hello", max_tokens=32, **options))
    assert list(generation.token_ids) == expected("Hello", 32, folder, **options)


def test_messages_go_through_the_chat_template(swarm: Swarm, folder: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    generation = swarm.loop_thread.run(swarm.client.generate(messages=messages, max_tokens=8))
    assert len(generation.token_ids) in range(1, 9)


def test_the_invite_keeps_the_key_and_names_the_folder(swarm: Swarm, folder: Path) -> None:
    invite = Invite.parse(swarm.invite)
    assert invite.key == "open sesame"
    assert invite.model == f"./{folder.name}"


@pytest.mark.parametrize(("field", "value"), [("swarm", "other-abcdefgh"), ("key", "open barley")])
def test_a_foreign_invite_is_refused(
    swarm: Swarm,
    field: str,
    value: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "KNOWN_SECONDS", 1.0)  # nothing will come
    changed: dict[str, Any] = {field: value}
    foreign = replace(Invite.parse(swarm.invite), **changed).encode()
    code = main(["node", "--join", foreign, "--state", str(tmp_path), "--listen", "127.0.0.1"])
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "invite" in line


def test_a_node_too_small_for_one_layer_stands_by_and_says_so(swarm: Swarm) -> None:
    speck = swarm.nodes.started[2]
    assert "too small for one layer" in speck.line("spare:")
    generation = swarm.loop_thread.run(swarm.client.generate("Hello", max_tokens=4))
    assert len(generation.route) == 2
    assert speck.interrupt()[0] == 0


def test_an_interrupted_node_says_so_and_one_more_signal_ends_the_other(swarm: Swarm) -> None:
    host, other = swarm.nodes.started[:2]
    code, seconds = other.interrupt()
    assert code == 0
    assert seconds < 5.0
    assert other.lines[-1].startswith("left:")
    with swarm.loop_thread.hold(open_links(Invite.parse(swarm.invite))) as links:
        tail = other.peer_tail
        adverts = swarm.loop_thread.run(links.board.read(Advert))
        peers = swarm.loop_thread.run(links.board.read(Capability))
    assert [a.stages for p, a in adverts.items() if p.endswith(tail)] in ([], [[]])
    assert all(c.leaving for p, c in peers.items() if p.endswith(tail))
    code, seconds = host.interrupt(signal.SIGTERM)
    assert code == 0
    assert seconds < 5.0
    for node in (host, other):
        wait_until(lambda node=node: not node.orphans(), 2.0)  # type: ignore[misc]


def test_a_node_that_is_interrupted_while_it_starts_leaves_too(
    folder: Path, tmp_path: Path
) -> None:
    with nodes_in(tmp_path) as nodes:
        node = nodes.start(Part("early", 1 << 24), "--host", "--model", str(folder))
        node.line("invite:")  # its worker is still importing torch
        asked = time.monotonic()
        code, seconds = node.interrupt()
        assert code == 0
        assert seconds < 5.0, time.monotonic() - asked
        wait_until(lambda: not node.orphans(), 2.0)
        assert flags_of(node.part, tmp_path)
