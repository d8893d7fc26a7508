"""Client: one connection to a swarm for as many requests at once as you like."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from client.generation import Generation
from client.network import Connect, Links, open_links
from client.request import LocalModel, Options, Question, Request
from client.routing.live_plan import find_plan, trust_of
from client.routing.route import Need, Place, Route
from client.routing.route_finder import RouteFinder
from client.session.deadlines import TIMEOUT_SECONDS
from client.session.session_router import SessionRouter, Sessions
from client.text.tokenizer import Messages
from client.token_stream import StreamState, TokenStream, end
from swarm.checkpoint.peer_downloader import open_from_peers
from swarm.dht.founders_manifest import ManifestKeeper
from swarm.errors import BadInput, BadModel, LocalProtocolError, SwarmError, Unreachable
from swarm.invites import Invite, choose_invite
from swarm.state_folder import local_name, own_environment, state_folder
from swarm.task_set import TaskSet
from swarm.trust.peer_lists import peer_id


class Client:
    """A swarm to ask; use it with `async with`. Requests may run side by side."""

    def __init__(
        self,
        join: Invite | str | None = None,
        *,
        model: str | LocalModel | None = None,
        state: Path | None = None,
        connect: Connect | None = None,
        raw_bytes: bool = False,  # prompt and answer are bytes as ids: the model has no tokenizer
        trusted_ends: Iterable[str] = (),  # peers that alone may see text; none: anybody may
    ) -> None:
        self._trusted_ends = frozenset(peer_id(peer, "--trusted-ends ") for peer in trusted_ends)
        self._invite = choose_invite(join, own_environment(), state)
        folder = state or state_folder(own_environment())
        hosted = local_name(folder, self._invite.swarm, self._invite.model)
        self._is_chosen = isinstance(model, str)
        self._name = model if isinstance(model, str) else hosted
        self._local = model if isinstance(model, LocalModel) else None
        self._raw_bytes = raw_bytes
        self._connect = connect or partial(open_links, state=folder)
        self._stack = AsyncExitStack()
        self._running: set[asyncio.Task[None]] = set()
        self._is_open = False

    async def model(self) -> LocalModel:
        """What is known of the model here; asks the peers for its metadata files if it is not here.

        Raises BadModel, Unreachable.
        """
        if self._local is None:
            try:
                self._local = await self._read()
            except (BadModel, Unreachable) as error:
                if self._is_chosen:
                    raise
                self._local = await self._ask_for_model(error)
        return self._local

    async def _read(self) -> LocalModel:
        """What this machine has of the model; raises BadModel, Unreachable."""
        name = self._name
        return await asyncio.to_thread(LocalModel.read, name, raw_bytes=self._raw_bytes)

    async def _read_if_new(self) -> LocalModel:
        return self._local or await self._read()

    async def _ask_for_model(self, cause: SwarmError) -> LocalModel:
        try:
            async with self._connect(self._invite) as links:
                return await self._of_peers(links, cause)
        except Unreachable:
            raise cause from None

    async def _of_peers(self, links: Links, cause: SwarmError) -> LocalModel:
        """The model by its metadata files, which peers have; raises `cause` if none does."""
        find = ManifestKeeper(links.channel, links.board, self._invite.swarm).find
        folder, _ = await open_from_peers(links.channel, links.board, cause, find)
        return await asyncio.to_thread(LocalModel.of, folder, self._name, raw_bytes=self._raw_bytes)

    async def __aenter__(self) -> Self:
        """Connect, and read the model meanwhile; what is wrong with the model is said first."""
        async with AsyncExitStack() as stack, TaskSet() as tasks:
            reading = tasks.create("reading the model", self._read_if_new(), is_awaited=True)
            try:
                self._links = await stack.enter_async_context(self._connect(self._invite))
            except SwarmError:
                await reading
                raise
            try:
                local = self._local = await reading
            except (BadModel, Unreachable) as error:
                if self._is_chosen:
                    raise
                local = self._local = await self._of_peers(self._links, error)
            self._route_finder = RouteFinder(
                self._links.board,
                local.spec,
                places=self._places,
                trusted_ends=self._trusted_ends,
            )
            router = SessionRouter(self._links.channel)
            self._sessions = Sessions(self._links.channel, self._route_finder, router)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    async def _places(self) -> frozenset[Place]:
        live = await find_plan(self._links.board, self._links.channel, trust_of(self._invite))
        return live.places() if live else frozenset()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False
        for task in self._running:
            end(task)
        try:
            await asyncio.gather(*self._running, return_exceptions=True)
        finally:
            await self._stack.__aexit__(kind, error, trace)

    async def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Messages | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        **options: Unpack[Options],
    ) -> Generation:
        """Generate to the end; raises SwarmError. Cancelling it frees every stage."""
        request = await self.request(Question(prompt, messages, timeout_seconds, options))
        return await self.complete(request)

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Messages | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        **options: Unpack[Options],
    ) -> TokenStream:
        """Pieces of text as they come: `async for piece in client.stream(...)`."""
        question = Question(prompt, messages, timeout_seconds, options)
        return self.ask(self._connected().request(self._within_trust(question)))

    async def request(self, question: Question) -> Request:
        """Check a question without any peer, connected or not; raises BadInput, BadModel."""
        local = await self.model()
        return await asyncio.to_thread(local.request, self._within_trust(question))

    async def route(self) -> Route:
        """A route that a session might take now; raises NoRoute, BadModel, Unreachable."""
        spec = self._connected().spec
        need = Need(spec.digest, spec.layers, 1, ends=self._trusted_ends)
        return await self._route_finder.find(need, fresh=False)

    def _within_trust(self, question: Question) -> Question:
        """Between trusted ends nothing is guessed: guesses are ids, and pass all stages."""
        if not self._trusted_ends:
            return question
        return replace(question, options={**question.options, "speculate": 0})

    def ask(self, request: Request) -> TokenStream:
        """Start to answer a question that `request` has checked, once."""
        if request.n != 1:
            raise BadInput(
                f"n is {request.n}; a stream is one answer.", "Use generate.", option="n"
            )
        return self.ask_together([request])[0]

    def ask_together(self, requests: Sequence[Request]) -> list[TokenStream]:
        """Start to answer several questions, each once.

        Those with the same prompt begin when the first of them has its first token, on its route:
        the stages have the prompt's rows then, and compute them once.
        """
        leaders: dict[tuple[int, ...], StreamState] = {}
        streams = []
        for request in requests:
            state = StreamState(request, self._connected().tokenizer)
            leader = None if self._trusted_ends else leaders.setdefault(request.ids, state)
            work = self._answer(request, state, None if leader is state else leader)
            task = asyncio.create_task(work)
            self._running.add(task)
            task.add_done_callback(partial(self._forget, state))
            streams.append(TokenStream(state, task))
        return streams

    async def complete(self, request: Request) -> Generation:
        """Answer a question that `request` has checked to the end, n times.

        Raises SwarmError of any; then, and if it is cancelled, the others end, too.
        """
        streams = self.ask_together(request.choices())
        try:
            first, *others = [await stream.finish() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()
        return replace(first, others=tuple(others))

    async def _answer(
        self, request: Request, state: StreamState, leader: StreamState | None
    ) -> None:
        """Run one session, behind the first token of the leader if there is one."""
        if leader:
            await leader.has_begun.wait()
        session = self._sessions.begin(request)
        route = leader.session.last_route if leader and leader.session else None
        if route:
            session.prefer(route)
        try:
            await state.follow(session)
        finally:
            self._sessions.end(session)

    def _connected(self) -> LocalModel:
        """The model of a client that can be asked."""
        if self._local is None or not self._is_open:
            raise LocalProtocolError(
                "The client is not connected.", "Use it with `async with Client()`."
            )
        return self._local

    def _forget(self, state: StreamState, task: "asyncio.Task[None]") -> None:
        state.close()
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: an answer that nobody reads to its end may fail in peace
