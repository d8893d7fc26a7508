"""HeldNetwork: another p2pd takes the place of one, and board and channel live on."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from swarm.dht import dht_board
from swarm.errors import Unreachable
from swarm.network import HeldNetwork, hold_network
from swarm.p2p import daemon_watchdog, p2pd_process
from swarm.p2p.p2pd_process import Network
from swarm.records import Relay
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import Identity, swarm_id
from swarm.wire.messages import Token
from tests.swarm.conftest import Eventually

SECONDS = 60.0
# hivemind drops its connections to a p2pd that does not answer, without closing them
hivemind_drops_connections = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[HeldNetwork, HeldNetwork]]:
    """A founder and who joined it."""
    founder = Identity.throwaway()
    swarm = swarm_id("test", founder.peer)
    async with (
        asyncio.timeout(SECONDS),
        hold_network(founder, Network(), swarm, "") as one,
        hold_network(
            Identity.throwaway(),
            Network(initial_peers=await one.daemon.addresses()),
            *(swarm, ""),
        ) as other,
    ):
        yield one, other


async def named(_peer: str, payload: bytes) -> bytes:
    return b"it is " + payload


async def runs_again(network: HeldNetwork, before: object) -> bool:
    """Whether another p2pd has taken the place of one, and all is open again."""
    is_done = not network.daemon.ended.is_set() and not network._replacing.locked()
    return network.daemon.p2p is not before and is_done


def relay(name: str) -> Relay:
    return Relay(addresses=[], since=0.0, name=name)


def test_answers_records_and_port_outlive_the_daemon(eventually: Eventually) -> None:
    async def story() -> None:
        async with pair() as (one, other):
            one.channel.answer("name", named)
            await other.board.publish(relay("other"))
            before, p2p = await one.daemon.addresses(), one.daemon.p2p
            known = await other.daemon.addresses()

            await one.replace_daemon(replace(one.network, initial_peers=known))

            assert one.daemon.p2p is not p2p
            assert await one.daemon.addresses() == before
            assert not one.daemon.ended.is_set()
            assert await other.channel.ask(one.daemon.peer, "name", b"one") == b"it is one"
            assert (await one.board.read(Relay))[other.daemon.peer].name == "other"
            await one.board.publish(relay("one"))

            async def is_read() -> bool:
                return len(await other.board.read(Relay)) == 2

            await eventually(is_read)

    asyncio.run(story())


def test_an_open_stream_is_lost_and_opened_again() -> None:
    async def story() -> None:
        async with pair() as (one, other):
            heard: asyncio.Queue[object] = asyncio.Queue()
            one.channel.listen(lambda peer, message: heard.put_nowait(message), lambda *_: None)
            other.channel.listen(
                lambda *_: None, lambda peer, reason: heard.put_nowait(f"lost {peer}")
            )
            token = Token("session", 1, b"key", 0, [1])
            await other.channel.send(one.daemon.peer, token)
            assert isinstance(await heard.get(), Token)
            await one.replace_daemon(one.network)
            assert await heard.get() == f"lost {one.daemon.peer}"
            await other.channel.send(one.daemon.peer, token)
            assert isinstance(await heard.get(), Token)

    asyncio.run(story())


def test_a_question_waits_while_the_daemon_is_replaced() -> None:
    async def story() -> None:
        async with pair() as (one, other):
            one.channel.answer("name", named)
            replacing = asyncio.create_task(other.replace_daemon(other.network))
            await asyncio.sleep(0)
            assert await other.channel.ask(one.daemon.peer, "name", b"one") == b"it is one"
            assert replacing.done()
            await replacing

    asyncio.run(story())


def test_a_killed_daemon_is_started_again(eventually: Eventually) -> None:
    async def story() -> None:
        async with pair() as (one, other):
            other.channel.answer("name", named)
            p2p = other.daemon.p2p
            os.kill(p2p._child.pid, signal.SIGKILL)
            await eventually(lambda: runs_again(other, p2p))
            assert await one.channel.ask(other.daemon.peer, "name", b"two") == b"it is two"
            assert not other.daemon.given_up.is_set()

    asyncio.run(story())


@hivemind_drops_connections
def test_a_daemon_that_hangs_is_killed_and_started_again(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_watchdog, "BEAT_SECONDS", 0.2)

    async def story() -> None:
        async with pair() as (one, other):
            other.channel.answer("name", named)
            p2p, addresses = other.daemon.p2p, await other.daemon.addresses()
            os.kill(p2p._child.pid, signal.SIGSTOP)
            await eventually(lambda: runs_again(other, p2p))
            assert await one.channel.ask(other.daemon.peer, "name", b"two") == b"it is two"
            assert await other.daemon.addresses() == addresses

    asyncio.run(story())


@hivemind_drops_connections
def test_a_daemon_that_hangs_at_the_end_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (p2pd_process, dht_board):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)

    async def story() -> None:
        async with pair() as (_, other):
            child = other.daemon.p2p._child
            os.kill(child.pid, signal.SIGSTOP)
        assert await child.wait() == -signal.SIGKILL

    asyncio.run(story())


def test_a_daemon_that_does_not_start_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    async def fails(_network: HeldNetwork, stands: Network) -> None:
        tries.append(stands.port)
        raise Unreachable("p2pd is not there.")

    async def story() -> None:
        async with pair() as (_, other):
            monkeypatch.setattr(HeldNetwork, "_start_again", fails)
            monkeypatch.setattr("swarm.network.PAUSES", (0.0, 0.01))
            os.kill(other.daemon.p2p._child.pid, signal.SIGKILL)
            await other.daemon.given_up.wait()
            assert set(tries) == {other.network.port}

    asyncio.run(story())


def test_peers_that_are_gone_do_not_keep_the_new_daemon_from_starting() -> None:
    async def story() -> None:
        async with pair() as (one, other):
            one.channel.answer("name", named)
            gone = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_named('gone')}"
            await one.replace_daemon(replace(one.network, initial_peers=(gone,)))
            assert await other.channel.ask(one.daemon.peer, "name", b"one") == b"it is one"

    asyncio.run(story())
