"""What the tests of the two seams share: real peers on loopback, on one loop for a whole file."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from swarm.dht.bootstrap import KnownPeers
from swarm.dht.dht_board import DhtBoard
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import P2PDaemon, open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.trust.identity import Identity, swarm_id
from swarm.wire.messages import Message

T = TypeVar("T")
PING_SECONDS = 0.2
PATIENCE_SECONDS = 20.0  # for a machine that is busy with other tests


@dataclass
class Peer:
    """One real peer and what came in at it."""

    identity: Identity
    daemon: P2PDaemon
    channel: LibP2PChannel
    board: DhtBoard | None
    messages: "asyncio.Queue[tuple[str, Message]]" = field(default_factory=asyncio.Queue)
    losses: "asyncio.Queue[tuple[str, str]]" = field(default_factory=asyncio.Queue)

    @property
    def id(self) -> str:
        return self.daemon.peer

    async def message(self) -> tuple[str, Message]:
        return await asyncio.wait_for(self.messages.get(), PATIENCE_SECONDS)

    async def loss(self) -> tuple[str, str]:
        return await asyncio.wait_for(self.losses.get(), PATIENCE_SECONDS)

    def own_board(self) -> DhtBoard:
        assert self.board is not None
        return self.board


@dataclass
class Swarm:
    """Real peers that a test file starts and the fixture ends."""

    runner: asyncio.Runner
    stack: AsyncExitStack
    founder: Identity = field(default_factory=Identity.throwaway)
    addresses: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return swarm_id("test", self.founder.peer)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a test's coroutine on the loop of the peers."""
        return self.runner.run(asyncio.wait_for(work, 3 * PATIENCE_SECONDS))

    async def peer(
        self,
        *,
        client: bool = False,
        board: bool = False,
        key: str = "",
        swarm: str = "",
        ping_seconds: float = PING_SECONDS,
        listens: bool = True,
    ) -> Peer:
        """Start a peer; the first one founds the swarm."""
        identity = Identity.throwaway() if self.addresses else self.founder
        network = Network(initial_peers=self.addresses, client=client)
        daemon = await open_p2p(identity, network)
        self.stack.push_async_callback(daemon.close)
        self.addresses = self.addresses or await daemon.addresses()
        found = None
        if board:
            found = await DhtBoard.open(
                daemon,
                self.id,
                identity,
                key=key,
                known=KnownPeers(network.initial_peers),
                client=client,
            )
            self.stack.push_async_callback(found.close)
        channel = await LibP2PChannel.open(daemon, swarm or self.id, key, ping_seconds=ping_seconds)
        self.stack.push_async_callback(channel.close)
        peer = Peer(identity, daemon, channel, found)
        if listens:
            channel.listen(
                lambda sender, message: peer.messages.put_nowait((sender, message)),
                lambda lost, reason: peer.losses.put_nowait((lost, reason)),
            )
        return peer


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """An empty swarm; whatever it starts ends with the file."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield Swarm(runner, stack)
        runner.run(stack.aclose())


Eventually = Callable[[Callable[[], Awaitable[bool]]], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits until something holds, as long as patience lasts."""

    async def wait(holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await holds():  # noqa: ASYNC110 (nothing announces what we wait for)
                await asyncio.sleep(0.05)

    return wait
