"""A swarm of scripted stages in memory: they pass ids on and sample by a fixed rule."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from client.async_client import Client
from client.network import Links
from client.request import LocalModel, Request
from client.routing.route_finder import RouteFinder
from client.session.deadlines import Timeouts
from client.session.inference_session import Session
from client.session.session_router import SessionRouter
from client.text.tokenizer import ByteTokenizer
from swarm.errors import PeerLost
from swarm.invites import Invite
from swarm.model_spec import ModelSpec
from swarm.records import Advert, Member, StageAdvert
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.wire.messages import Cancel, Close, Message, Open, Opened, Step, Token
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_ids import ids_of_bytes, ids_to_bytes
from swarm.wire.token_logprobs import logprobs_to_bytes

LAYERS = 6
SPEC = ModelSpec(
    name="scripted",
    digest="d" * 64,
    architecture="llama",
    layers=LAYERS,
    hidden=8,
    heads=2,
    kv_heads=2,
    head_dim=4,
    ffn=16,
    vocab=300,
    context=4096,
    attention_parameters=100,
    mlp_parameters=100,
)
Hook = Callable[["ScriptedStage", str, Message], bool]


def next_id(ids: Sequence[int]) -> int:
    """The rule: a letter that depends on everything before it, so that a wrong replay shows."""
    return 97 + (sum(ids) * 31 + len(ids) * 7) % 26


def continuation(prompt: Sequence[int], count: int) -> list[int]:
    """What the scripted swarm must answer."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_id(ids))
    return ids[len(prompt) :]


def scores_of(token: int, top: int | None) -> bytes:
    """The likelihoods that a scripted stage tells of: its own token, then the ids before it."""
    if top is None:
        return b""
    values = -np.array([[0.5, *(0.5 + at for at in range(top))]], np.float32)
    return logprobs_to_bytes(values, np.array([[token - at for at in range(top)]]))


class ScriptedStage:
    """A stage that follows the protocol; `hook` sees every message first and may take it."""

    def __init__(self, world: MemoryWorld, name: str, start: int, end: int, digest: str) -> None:
        self.peer = peer_named(name)
        self.digest = digest
        self.start, self.end = start, end
        self.channel = world.channel(self.peer)
        self.board = world.board(self.peer)
        self.heard: list[Message] = []
        self.opened: dict[str, Open] = {}
        self.samplings: list[Mapping[str, Any]] = []  # as sessions asked for them
        self.ids: dict[str, list[int]] = {}
        self.clients: dict[str, str] = {}
        self.hook: Hook = lambda stage, peer, message: False
        self.written: Sequence[int] = ()  # what it says in place of the rule, if anything
        self.hop_unreachable = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.channel.listen(self.on_message, lambda peer, reason: None)

    async def advertise(self, **facts: Any) -> None:
        """Publish what is served here."""
        values = {"step_seconds": 0.01, "free_tokens": 10_000, "sessions": 0} | facts
        stage = StageAdvert(self.start, self.end, [Member(self.peer, 0, 2, 1)], **values)
        await self.board.publish(Advert(self.digest, [stage], 1))

    def on_message(self, peer: str, message: Message) -> None:
        """Behave like a stage."""
        self.heard.append(message)
        if self.hook(self, peer, message):
            return
        match message:
            case Open():
                self.clients[message.session] = peer
                self.opened[message.session] = message
                self.samplings.append(message.sampling)
                self.ids[message.session] = []
                reply = Opened(message.session, message.epoch, message.key, message.stage)
                self.spawn(self.channel.send(peer, reply))
            case Step():
                self._step(message)
            case Close() | Cancel():
                self.opened.pop(message.session, None)

    def _step(self, step: Step) -> None:
        opened = self.opened.get(step.session)
        if opened is None or opened.epoch != step.epoch:
            return
        ids = self.ids[step.session]
        assert step.position == len(ids), "steps arrive in order, without gaps"
        ids += ids_of_bytes(step.body)
        if step.stage < len(opened.route) - 1:
            self.pass_on(opened, step, step.stage + 1)
        elif step.sample:
            self._sample(opened, step, ids)

    def _sample(self, opened: Open, step: Step, ids: list[int]) -> None:
        sampling = Sampling.from_map(opened.sampling)
        prompt = len(ids_of_bytes(opened.body)) - opened.generated
        token = self.written[len(ids) - prompt] if self.written else next_id(ids)
        finish = "length" if len(ids) + 1 - prompt >= sampling.max_tokens else ""
        finish = "stop" if token in sampling.stop_ids else finish
        common = (step.session, step.epoch, step.key)
        hops = [[1000, 2000, 3000] for _ in opened.route]
        body = scores_of(token, sampling.top_logprobs)
        told = Token(*common, len(ids), [token], finish, hops, body=body)
        self.spawn(self.channel.send(self.clients[step.session], told))
        if not finish:
            ring = Step(*common, 0, len(ids), 1, True, "i32", body=ids_to_bytes([token]))
            self.pass_on(opened, ring, 0)

    def pass_on(self, opened: Open, step: Step, stage: int) -> None:
        """Send a step to the leader of a hop, or to the client where that is out of reach."""
        common = (step.session, step.epoch, step.key, stage, step.position, step.tokens)
        moved = Step(*common, step.sample, step.dtype, body=bytes(step.body))
        receiver = opened.route[stage][0]
        if receiver == self.peer:
            self.on_message(self.peer, moved)
            return
        receiver = self.clients[step.session] if self.hop_unreachable else receiver
        self.spawn(self.channel.send(receiver, moved))

    def spawn(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without waiting."""

        async def send() -> None:
            with suppress(PeerLost):
                await sending

        task = asyncio.get_running_loop().create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def heard_kinds(self) -> list[str]:
        """The names of the messages so far."""
        return [type(message).__name__ for message in self.heard]


@dataclass
class Notes:
    """What a reader of tokens has seen, and behind how many of them it stops."""

    tokens: list[int] = field(default_factory=list)
    stop_at: int | None = None


class ReadSession(Session):
    """A session with a reader that only remembers."""

    notes: Notes

    async def run(self) -> None:
        """Read to the end."""
        async with aclosing(self.tokens()) as tokens:
            async for token in tokens:
                self.notes.tokens.append(token)
                if len(self.notes.tokens) == self.notes.stop_at:
                    self.stop()


QUICK = Timeouts(step_seconds=0.2, open_seconds=0.1, pause_seconds=0.02, leave_seconds=0.2)


@dataclass
class ScriptedSwarm:
    """Stages in a world, and a client's way in."""

    world: MemoryWorld = field(default_factory=MemoryWorld)
    notes: Notes = field(default_factory=Notes)
    spec: ModelSpec = SPEC

    def __post_init__(self) -> None:
        self.channel = self.world.channel(peer_named("client"))
        self.route_finder = RouteFinder(self.world.board(peer_named("client")), self.spec)
        self.router = SessionRouter(self.channel)

    async def stage(self, name: str, start: int, end: int, **facts: Any) -> ScriptedStage:
        """Add a stage and its advert."""
        stage = ScriptedStage(self.world, name, start, end, self.spec.digest)
        await stage.advertise(**facts)
        return stage

    def session(
        self,
        prompt: Sequence[int],
        *,
        timeout_seconds: float = 5.0,
        timeouts: Timeouts = QUICK,
        **options: Any,
    ) -> ReadSession:
        """A session that is ready to run."""
        request = Request(tuple(prompt), Sampling(**options), timeout_seconds)
        session = ReadSession(self.channel, self.route_finder, request, timeouts)
        session.notes = self.notes
        self.router.add(session)
        return session

    def client(self) -> Client:
        """A whole client of this swarm, not yet connected."""
        invite = Invite(("/ip4/127.0.0.1/tcp/1",), "scripted", "scripted")
        local = LocalModel(self.spec, ByteTokenizer(), ())
        return Client(invite, model=local, connect=self.connect)

    @asynccontextmanager
    async def connect(self, invite: Invite) -> AsyncIterator[Links]:
        """What `Client(connect=...)` takes."""
        peer = peer_named("client")
        yield Links(self.world.board(peer), self.world.channel(peer))


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact; the test's own deadline ends a vain wait."""
    while not fact():  # noqa: ASYNC110 - any fact, not an event
        await asyncio.sleep(0.001)
