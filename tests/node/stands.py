"""What the node's tests share: a scripted worker, a server among scripted peers, and frames."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from node.serving.session_table import name_of
from node.serving.stage_server import LedStage, StageServer
from node.worker.messages import Computed, Reserve, Reserved
from node.worker.worker_handle import WorkerProcess
from swarm.records import Member
from swarm.testing.clock import settle
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.wire.messages import Message, Open, Step
from swarm.wire.token_ids import ids_to_bytes

DIGEST = "d" * 64
FIRST, MIDDLE, LAST, CLIENT, STRANGER = map(
    peer_named, ("first", "middle", "last", "client", "stranger")
)
ROUTE: list[list[object]] = [[FIRST, 0, 3], [MIDDLE, 3, 5], [LAST, 5, 8]]
SPANS = {FIRST: (0, 3), MIDDLE: (3, 5), LAST: (5, 8)}
KEY = b"k" * 16
CONTEXT = 2000
M = TypeVar("M", bound=Message)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for a condition; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any fact, not an event
            await asyncio.sleep(0.005)


class ScriptedWorker(WorkerProcess):
    """Stands for a worker process: keeps the orders; a test says what it answers."""

    is_behind = is_silent = is_stalled = False

    def __init__(self) -> None:
        self.orders: list[Message] = []
        self.ended = asyncio.Event()

    def order(self, message: Message) -> None:
        self.orders.append(message)

    def last(self, kind: type[M]) -> M:
        """The last order of a kind."""
        return [order for order in self.orders if isinstance(order, kind)][-1]

    def count(self, kind: type[Message]) -> int:
        """How many orders of a kind came."""
        return sum(isinstance(order, kind) for order in self.orders)


class IdleServer:
    """Stands for a stage server that has no session."""

    def serve(self, device: int, stage: LedStage) -> None:
        """Take none."""

    def retire(self, device: int, code: str = "") -> None:
        """End none."""

    async def drain(self, device: int, seconds: float = 0.0) -> None:
        """Wait for none."""


@dataclass
class Ear:
    """A peer that only listens."""

    heard: list[Message] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)

    def hear(self, peer: str, message: Message) -> None:
        self.senders.append(peer)
        self.heard.append(message)

    def last(self, kind: type[M]) -> M:
        """The last message of a kind."""
        return [message for message in self.heard if isinstance(message, kind)][-1]


class Stand:
    """One server of a three-stage route; the other stages, the client and a stranger listen."""

    def __init__(self, me: str = MIDDLE) -> None:
        self.world = MemoryWorld()
        self.me = me
        self.worker = ScriptedWorker()
        self.channel = self.world.channel(me)
        self.server = StageServer(self.channel, DIGEST, context=CONTEXT, opens_per_second=10_000)
        self.serve()
        self.ears = {peer: Ear() for peer in {*SPANS, CLIENT, STRANGER} - {me}}
        self.channels = {peer: self.world.channel(peer) for peer in self.ears}
        for peer, ear in self.ears.items():
            self.channels[peer].listen(ear.hear, lambda _peer, _reason: None)

    @property
    def client(self) -> Ear:
        return self.ears[CLIENT]

    def serve(self, device: int = 0, free_tokens: int = 1000) -> None:
        """Lead the stage of the route on a device."""
        start, end = SPANS[self.me]
        members = (Member(self.me, device, 8, 8),)
        self.server.serve(device, LedStage(self.worker, start, end, members, 0.01, free_tokens))

    async def send(self, message: Message, sender: str = CLIENT) -> None:
        """Send a message to the server and let everything happen that follows from it."""
        await self.channels[sender].send(self.me, message)
        await settle()

    async def answer(self, answer: Message, device: int = 0) -> None:
        """Let the worker answer."""
        self.server.on_answer(device, answer)
        await settle()

    def open(self, epoch: int = 1, session: str = "s", key: bytes = KEY) -> Open:
        """An OPEN for the server's own stage."""
        stage = [hop[0] for hop in ROUTE].index(self.me)
        return Open(
            session,
            epoch,
            key,
            stage=stage,
            route=ROUTE,
            model=DIGEST,
            capacity=64,
            sampling={"max_tokens": 4},
            body=ids_to_bytes([5, 6, 7]),
        )

    def step(self, position: int = 0, tokens: int = 3, epoch: int = 1) -> Step:
        """A STEP for the server's own stage."""
        stage = [hop[0] for hop in ROUTE].index(self.me)
        body = ids_to_bytes(list(range(tokens)))
        hops = [[1, 2, 3]] * stage
        return Step("s", epoch, KEY, stage, position, tokens, True, "i32", hops, body=body)

    async def open_session(self, epoch: int = 1) -> None:
        """Open session "s" and let the worker reserve it."""
        await self.send(self.open(epoch))
        order = self.worker.last(Reserve)
        await self.answer(Reserved(order.session, 900))

    @staticmethod
    def name(session: str = "s", epoch: int = 1, client: str = CLIENT) -> str:
        """What the worker calls a session."""
        opened = Open(session, epoch, KEY, stage=0, route=ROUTE, model=DIGEST, capacity=1)
        return name_of(opened, client)

    def computed(self, position: int = 0, tokens: int = 3, token: int | None = None) -> Computed:
        """The worker's answer to a step: hidden rows, or a sampled token."""
        return Computed(
            self.name(),
            position,
            tokens,
            sample=True,
            dtype="f32" if token is None else "",
            ids=[] if token is None else [token],
            queue_us=10,
            compute_us=20,
            free_tokens=850,
            body=b"rows" if token is None else b"",
        )
