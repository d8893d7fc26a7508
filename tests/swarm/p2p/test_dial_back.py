"""Dial-back: who is dialed, where and how often, and what counts as an answer."""

import asyncio
from collections.abc import Sequence

import msgpack
import pytest

from swarm.errors import PeerRefused, RemoteProtocolError
from swarm.p2p.dial_back import OF_ONE_BURST, QUESTION, DialBack, Finding, ask_dial_back, hosts_of
from swarm.p2p.identity_probe import is_peer_at, names_peer
from swarm.p2p.p2p_daemon import open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity

ASKER, ANSWERER = peer_named("asker"), peer_named("answerer")


class Line:
    """What an answerer sees of its connections, and whom it dials."""

    def __init__(self, *addresses: str, open_at: Sequence[tuple[str, int]] = ()) -> None:
        self.addresses = addresses
        self.open_at = open_at
        self.dialed: list[tuple[str, int]] = []

    async def connected(self) -> dict[str, Sequence[str]]:
        return {ASKER: self.addresses}

    async def is_peer_at(self, host: str, port: int, peer: str) -> bool:
        assert peer == ASKER
        self.dialed.append((host, port))
        return (host, port) in self.open_at

    def asks(self, *ports: int) -> Finding:
        """What the asker is told over a network in memory."""

        async def story() -> Finding:
            world = MemoryWorld()
            asker, answerer = world.channel(ASKER), world.channel(ANSWERER)
            answerer.answer(QUESTION, DialBack(self.connected, self.is_peer_at).answer)
            return await ask_dial_back(asker, ANSWERER, ports)

        return asyncio.run(story())


def test_a_peer_is_dialed_where_it_is_seen_at_the_ports_that_it_names() -> None:
    line = Line(f"/ip4/203.0.113.7/tcp/61000/p2p/{ASKER}", open_at=[("203.0.113.7", 4001)])
    finding = line.asks(4001, 4002)
    assert line.dialed == [("203.0.113.7", 4001), ("203.0.113.7", 4002)]
    assert finding.seen == ("203.0.113.7",)
    assert finding.reached == ("/ip4/203.0.113.7/tcp/4001",)
    assert finding.is_from_outside


def test_a_peer_that_comes_through_a_relay_is_not_dialed_at_the_relay() -> None:
    relay = f"/ip4/203.0.113.9/tcp/4001/p2p/{ANSWERER}/p2p-circuit/p2p/{ASKER}"
    line = Line(relay)
    assert line.asks(4001) == Finding((), ())
    assert line.dialed == []


def test_an_address_of_a_private_network_is_not_outside() -> None:
    line = Line(f"/ip4/192.168.1.7/tcp/4001/p2p/{ASKER}", open_at=[("192.168.1.7", 4001)])
    finding = line.asks(4001)
    assert finding.reached
    assert not finding.is_from_outside


def test_few_ports_are_dialed_however_many_are_named() -> None:
    line = Line(f"/ip4/203.0.113.7/tcp/1/p2p/{ASKER}")
    with pytest.raises(PeerRefused, match="names no ports"):
        line.asks()

    async def story() -> None:
        answer = DialBack(line.connected, line.is_peer_at).answer
        await answer(ASKER, msgpack.packb([list(range(1, 1000))]))

    asyncio.run(story())
    assert len(line.dialed) == 3


@pytest.mark.parametrize("ports", [[0], [65536], ["4001"], [True], "4001", None])
def test_a_question_without_real_ports_is_refused(ports: object) -> None:
    line = Line(f"/ip4/203.0.113.7/tcp/1/p2p/{ASKER}")
    answer = DialBack(line.connected, line.is_peer_at).answer
    for payload in (msgpack.packb([ports]), msgpack.packb(ports), b"\xc1"):
        with pytest.raises(RemoteProtocolError):
            asyncio.run(answer(ASKER, payload))
    assert line.dialed == []


def test_who_asks_too_often_is_refused_and_others_are_not() -> None:
    line = Line(f"/ip4/203.0.113.7/tcp/1/p2p/{ASKER}")

    async def story() -> None:
        answer = DialBack(line.connected, line.is_peer_at).answer
        question = msgpack.packb([[4001]])
        for _ in range(OF_ONE_BURST):
            await answer(ASKER, question)
        with pytest.raises(PeerRefused, match="too often") as caught:
            await answer(ASKER, question)
        assert caught.value.retry_after_seconds > 0
        await answer(ANSWERER, question)

    asyncio.run(story())


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xc1", [], [["no host"], []], [["1.1.1.1"] * 3, []], [[], ["x" * 200]], [[], [1]]],
)
def test_an_answer_that_makes_no_sense_is_none(answer: object) -> None:
    data = answer if isinstance(answer, bytes) else msgpack.packb(answer)
    with pytest.raises(RemoteProtocolError):
        Finding.of_bytes(data)


def test_answers_of_a_later_version_are_understood() -> None:
    assert Finding.of_bytes(msgpack.packb([["1.1.1.1"], [], "more"])) == Finding(("1.1.1.1",), ())


def test_hosts_are_those_of_direct_connections_once_each() -> None:
    there = "/ip4/203.0.113.7/tcp"
    assert hosts_of([f"{there}/1", f"{there}/2", "/ip6/2001:db8::7/tcp/1", "/dns4/x/tcp/1"]) == (
        "203.0.113.7",
        "2001:db8::7",
    )


def test_a_real_daemon_proves_who_it_is_and_nobody_else() -> None:
    async def story() -> None:
        daemon = await open_p2p(Identity.throwaway(), Network())
        port = daemon.listening_port
        try:
            assert await is_peer_at("127.0.0.1", port, daemon.peer)
            assert not await is_peer_at("127.0.0.1", port, ANSWERER)
        finally:
            await daemon.close()
        assert not await is_peer_at("127.0.0.1", port, daemon.peer)

    asyncio.run(story())


def test_whoever_answers_without_libp2p_is_no_peer() -> None:
    async def story() -> None:
        async def chat(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\x13HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(chat, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert not await is_peer_at("127.0.0.1", port, ANSWERER)
        server.close()

    asyncio.run(story())
    assert not names_peer(b"no certificate", ANSWERER)
