"""Nodes come up where nobody answers, join later, outlive their founder, and have it back."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

import client
from client.cli.swarm_status import SwarmStatus, find_status
from client.event_loop_thread import EventLoopThread
from client.network import open_links
from swarm.errors import Unreachable
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.trust.identity import Identity, swarm_id
from tests.whole.conftest import SPARE
from tests.whole.reference_model import TINY
from tests.whole.swarms import NodeProcess, Nodes, Part, delegates_invite, nodes_in, wait_until

pytestmark = pytest.mark.nodes

JOIN_SECONDS = 60.0  # after the first peer is there
GONE_SECONDS = 20.0  # for newcomers, once the founder has gone; nodes need a part of it to start
LEAVE_SECONDS = 4.0
BOOK_SECONDS = 40.0  # for nodes to write down whom they are connected with
KEY = "lantern-harbour-quiet"  # private, so that any node may plan when the founder is gone
ALL = {"founder", "member", "newcomer"}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with nodes_in(tmp_path) as nodes:
        yield nodes


def part(name: str) -> Part:
    """A node that holds the whole model."""
    return Part(name, SPARE.memory_bytes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def _asked(invite: str, state: Path) -> list[int]:
    async with client.Client(invite, state=state) as asking:
        return list((await asking.generate("Once", max_tokens=8)).token_ids)


def asked(loop_thread: EventLoopThread, invite: str, state: Path) -> tuple[list[int], float]:
    """The ids that a client with such a state folder gets, and the seconds that it took."""
    began = time.monotonic()
    return loop_thread.run(_asked(invite, state)), time.monotonic() - began


def remembers(node: NodeProcess, peers: int) -> bool:
    """Whether a node's address book names so many peers that it was connected with."""
    books = [json.loads(path.read_text()) for path in (node.state / "peers").glob("*.json")]
    met = {a.rpartition("/")[2] for book in books for a, (_, at) in book["addresses"].items() if at}
    return len(met) >= peers


def invite_of_tomorrow(state: Path, port: int) -> str:
    """The invite of a host that has its key, and does not run yet."""
    identity = Identity.load_or_create(state / "node-1")
    identity.close()
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer}"
    return Invite((address,), swarm_id("swarm", identity.peer), BUILT_IN).encode()


def test_a_node_that_finds_nobody_joins_when_its_host_comes(nodes: Nodes, tmp_path: Path) -> None:
    """Nothing is known of the model yet, so that all of it has to wait."""
    port = free_port()
    invite = invite_of_tomorrow(tmp_path / "host", port)
    early = nodes.start(part("early"), "--join", invite)
    line = early.line("alone: ")
    assert f"127.0.0.1:{port} refused" in line
    assert "trying again in 5 s" in line
    assert "ask for a fresh invite" in line
    host = nodes.start(part("host"), "--host", "--port", str(port))
    assert host.line("invite: ") == invite
    early.line("joined: ", JOIN_SECONDS)
    assert "serves swarm-tiny" in early.line("swarm: ")
    early.line("ready: ")


def test_who_waits_alone_can_be_interrupted(nodes: Nodes, tmp_path: Path) -> None:
    lonely = nodes.start(part("lonely"), "--join", invite_of_tomorrow(tmp_path / "host", 1))
    lonely.line("alone: ")
    code, seconds = lonely.interrupt()
    assert code == 0
    assert seconds < LEAVE_SECONDS


def test_a_swarm_outlives_its_founder_and_has_it_back(
    nodes: Nodes, tmp_path: Path, loop_thread: EventLoopThread
) -> None:
    founder = nodes.start(part("founder"), "--host", "--key", KEY)
    invite = founder.line("invite: ")
    addresses = Invite.parse(invite).addresses
    founder.line("ready: ")
    member = nodes.start(part("member"), "--join", delegates_invite(founder))
    member.line("ready: ")
    admitted = Invite.parse(invite).ticket  # by the member, too
    expected, _ = asked(loop_thread, invite, tmp_path / "client")
    wait_until(lambda: remembers(founder, 1) and remembers(member, 1), BOOK_SECONDS)
    founder.kill()

    # who remembers the member needs no other invite; who does not takes the member's
    tokens, seconds = asked(loop_thread, invite, tmp_path / "client")
    assert tokens == expected
    assert seconds < GONE_SECONDS
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+ refused"):
        asked(loop_thread, invite, tmp_path / "stranger")
    near = replace(Invite.parse(member.remembered_invite()), ticket=admitted).encode()
    newcomer = nodes.start(part("newcomer"), "--join", near)
    newcomer.line("swarm: ", GONE_SECONDS)
    tokens, seconds = asked(loop_thread, near, tmp_path / "stranger")
    assert tokens == expected
    assert seconds < GONE_SECONDS

    back = nodes.start(part("founder"), "--host", "--key", KEY)
    again = Invite.parse(back.line("invite: "))
    assert (again.swarm, again.addresses) == (Invite.parse(invite).swarm, addresses)
    assert not [line for line in back.lines if line.startswith("alone: ")]
    for each in (back, member):  # both see one swarm, and one planner
        wait_until(lambda node=each: names_at(loop_thread, node) == ALL, 60.0)  # type: ignore[misc]

    back.interrupt()
    other = nodes.start(
        part("founder"), "--host", "--key", KEY, "--model", str(other_model(tmp_path))
    )
    line = other.line("error: ")
    assert "serves another model" in line
    assert "--swarm NAME" in line


async def _status(invite: Invite, state: Path) -> SwarmStatus:
    async with open_links(invite, state) as links:
        return await find_status(links.board, invite, 5.0)


def names_at(loop_thread: EventLoopThread, node: NodeProcess) -> set[str]:
    """Who is in the swarm as one sees it who enters by this node; nobody while none plans."""
    status = loop_thread.run(_status(Invite.parse(node.remembered_invite()), node.state))
    return {each.name for each in status.capabilities.values()} if status.planner else set()


def other_model(parent: Path) -> Path:
    """A model that is not the built-in one."""
    folder = parent / "other"
    copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return folder
