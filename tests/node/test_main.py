"""A node's process: what it says of itself first, what strangers drop, and how it is given up."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from node.config import NodeConfig
from node.main import hear_loop, introduce, unless_stopped
from node.status_lines import StatusLines
from swarm.invites import Invite
from swarm.testing.memory_network import peer_named
from tests.node.memberships import SPEC

HOST = peer_named("host")
STARTED = "Unhandled exception in client_connected_cb"


@pytest.mark.parametrize(
    ("message", "error", "is_told"),
    [
        (STARTED, asyncio.IncompleteReadError(b"", 1), False),
        (STARTED, ConnectionResetError(), False),
        ("Exception in callback", asyncio.CancelledError(), False),
        (STARTED, ValueError(), True),
        ("Task exception was never retrieved", ConnectionResetError(), True),
    ],
)
def test_only_streams_that_a_peer_drops_or_we_give_up_are_passed_over(
    message: str, error: BaseException, is_told: bool
) -> None:
    loop: Any = Mock()
    hear_loop(loop, {"message": message, "exception": error})
    assert loop.default_exception_handler.called == is_told


def test_what_is_being_opened_is_given_up_as_soon_as_the_node_shall_leave() -> None:
    undone: list[str] = []

    async def open_slowly() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append("closed")
        return "open"

    async def story() -> tuple[str | None, str | None]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_soon(stop.set)
        given_up = await unless_stopped(open_slowly(), stop)
        return given_up, await unless_stopped(asyncio.sleep(0, "open"), asyncio.Event())

    assert asyncio.run(story()) == (None, "open")
    assert undone == ["closed"]


@pytest.mark.parametrize(
    ("where", "is_enclosed"),
    [
        (("/ip4/192.168.1.7/tcp/4001", "/ip4/127.0.0.1/tcp/4001"), True),
        (("/ip4/192.168.1.7/tcp/4001", f"/ip4/203.0.113.7/tcp/1/p2p/{HOST}/p2p-circuit"), False),
        (("/ip4/127.0.0.1/tcp/4001",), False),  # meant for this machine alone
    ],
)
def test_a_founder_whose_invite_nobody_outside_can_use_says_so(
    where: tuple[str, ...], is_enclosed: bool
) -> None:
    addresses = tuple(f"{each}/p2p/{HOST}" for each in where)
    invite, lines = Invite(addresses, "forest-abc", "tiny"), list[str]()
    network: Any = SimpleNamespace(
        channel=SimpleNamespace(peer=HOST),
        addresses=addresses,
        invite=invite,
        invite_for_others=lambda: invite,
        admissions=None,
        last_swarm="",
    )
    status = StatusLines(lines.append, lambda _fraction: None, SPEC)
    introduce(NodeConfig(founds=True), network, status)
    notes = [line for line in lines if line.startswith("note: the invite names private addresses")]
    assert len(notes) == is_enclosed
    assert all("--announce" in line and "--relay" in line for line in notes)
