"""Relays that are given to p2pd: those that are there."""

import asyncio
import socket

from swarm.p2p.relays import answering
from swarm.testing.memory_network import peer_named


def relay_at(port: int, name: str) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_named(name)}"


def test_relays_that_are_gone_are_left_out_unless_there_is_no_other() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        living, dead = (
            relay_at(each.getsockname()[1], name) for each, name in ((there, "a"), (gone, "b"))
        )
        gone.close()
        assert asyncio.run(answering([dead, living])) == (living,)
        assert asyncio.run(answering([dead])) == (dead,)
        assert asyncio.run(answering([])) == ()
