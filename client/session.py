"""Session: one generation in flight; opens a route, feeds the prompt, mends what breaks."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress

from client.frame_checks import CHUNK_TOKENS, FrameChecks
from client.inbox import Inbox
from client.pace import Pace, Patience
from client.refusal import refusal_of, short
from client.request import Request
from client.route import Need, Route
from client.surroundings import Listener, Routes
from client.transcript import Transcript
from swarm.channel import Channel
from swarm.errors import (
    Deadline,
    NoRoute,
    PeerError,
    PeerLost,
    PeerMisbehaved,
    PeerRefused,
    SwarmError,
    Unreachable,
)
from swarm.formatting import printable
from swarm.tensors import ids_to_bytes
from swarm.wire import (
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    SessionMessage,
    Step,
    Token,
)

PATIENCE = Patience()
LONGEST_PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Session:
    """One generation; `run` it as a task and hand it what the channel says of it."""

    def __init__(
        self,
        channel: Channel,
        routes: Routes,
        request: Request,
        listener: Listener,
        patience: Patience = PATIENCE,
    ) -> None:
        self.id = secrets.token_hex(16)
        sampling = request.sampling
        self.transcript = Transcript(request.ids, sampling.max_tokens, sampling.stop_ids)
        self._key = secrets.token_bytes(16)
        self._channel, self._routes, self._listener = channel, routes, listener
        self._request, self._patience = request, patience
        self._clock = asyncio.get_running_loop().time
        self._pace = Pace(patience, request.timeout_seconds, self._clock)
        self._inbox = Inbox()
        self._checks = FrameChecks(routes.spec, request)
        self._route: Route | None = None
        self._epoch = 0
        self._unopened: set[int] = set()  # hops whose OPENED is still to come
        self._held = 0  # leading ids whose rows every stage has
        self._lost: set[str] = set()  # peers of the route that are gone
        self._rests: dict[str, float] = {}  # who failed us -> not to be asked before
        self._trouble: SwarmError = NoRoute("No peer was found.")
        self._faults = 0
        self.drafted = self.accepted = 0  # ids that the last stage guessed, and those it got right

    @property
    def replays(self) -> int:
        """How often the session had to start again on another route."""
        return self._pace.replays

    def receive(self, peer: str, message: Message) -> None:
        """Take a message that names this session, from the channel."""
        if not self._is_mine(peer, message):
            return
        assert self._route is not None
        if fault := self._checks.fault_of(message, len(self._route.stages)):
            cause = f"Peer {short(peer)} sent {fault}."
            self._inbox.put(peer, PeerMisbehaved(cause, peer=peer))
        else:
            self._inbox.put(peer, message)

    def lose(self, peer: str, reason: str) -> None:
        """Learn from the channel that a peer's stream ended."""
        if self._route is not None and peer in self._route.leaders:
            self._lost.add(peer)
            cause = f"Peer {short(peer)} was lost: {printable(reason)}"
            self._inbox.put(peer, PeerLost(cause, peer=peer))

    async def run(self) -> None:
        """Generate to the end, over as many routes as it takes; raises SwarmError.

        Holds KV at every stage of the route; frees it in every case, cancellation included.
        """
        try:
            while not self.transcript.finish:
                try:
                    await self._follow(await self._find_route())
                except PeerError as error:
                    await self._recover(error)
        finally:
            await self._leave()

    async def _find_route(self) -> Route:
        """Wait for a route, and for those of its peers that asked to be left alone a while."""
        fresh = self._epoch > 0
        while True:
            try:
                route = await self._routes.find(self._need(), fresh=fresh)
            except (NoRoute, Unreachable) as error:
                self._trouble, pause = error, self._patience.pause_seconds
            else:
                pause = self._rest_seconds(route)
                if pause <= 0:
                    return route
            if pause >= self._pace.left_seconds():
                raise self._trouble
            fresh = True
            await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))

    def _need(self) -> Need:
        spec = self._routes.spec
        return Need(spec.digest, spec.layers, self._request.capacity, frozenset(self._rests))

    def _rest_seconds(self, route: Route) -> float:
        now = self._clock()
        return max(self._rests.get(leader, now) - now for leader in route.leaders)

    async def _follow(self, route: Route) -> None:
        self._epoch += 1
        self._route = route
        self._routes.enter(route)
        self._lost.clear()
        self._inbox.clear()  # what the old route still says does not count
        self.transcript.begin_epoch()
        self._listener.use(route)
        logger.info("session %s epoch %d over %s", self.id[:8], self._epoch, route.to_wire())
        await self._open(route)
        await self._prefill(route)
        while not self.transcript.finish:
            await self._handle_next()

    async def _open(self, route: Route) -> None:
        self._pace.expect()
        self._unopened = set(range(len(route.stages)))
        self._held = len(self.transcript.ids) - 1
        opens = [(leader, self._open_for(route, hop)) for hop, leader in enumerate(route.leaders)]
        await self._send_all(opens, self._pace.wait_seconds())
        while self._unopened:
            await self._handle_next()

    def _open_for(self, route: Route, hop: int) -> Open:
        is_last = hop == len(route.stages) - 1
        return Open(
            self.id,
            self._epoch,
            self._key,
            stage=hop,
            route=route.to_wire(),
            model=self._routes.spec.digest,
            capacity=self._request.capacity,
            generated=len(self.transcript.generated),
            sampling=self._request.sampling.to_map() if is_last else {},
            body=ids_to_bytes(self.transcript.ids),
        )

    async def _prefill(self, route: Route) -> None:
        ids = self.transcript.ids
        self._pace.expect(-(-(len(ids) - self._held) // CHUNK_TOKENS))
        for position in range(self._held, len(ids), CHUNK_TOKENS):
            chunk = ids[position : position + CHUNK_TOKENS]
            step = Step(
                self.id,
                self._epoch,
                self._key,
                stage=0,
                position=position,
                tokens=len(chunk),
                sample=position + len(chunk) == len(ids),
                dtype="i32",
                body=ids_to_bytes(chunk),
            )
            await self._send(route.leaders[0], step)
            while not self._inbox.is_empty:  # rows to relay, or a refusal: not only at the end
                await self._handle_next()

    async def _handle_next(self) -> None:
        try:
            async with asyncio.timeout(max(self._pace.wait_seconds(), 0)):
                peer, message = await self._inbox.get()
        except TimeoutError as error:
            raise self._too_late() from error
        if isinstance(message, PeerError):
            raise message
        await self._handle(peer, message)

    async def _handle(self, peer: str, message: Message) -> None:
        assert self._route is not None
        match message:
            case Opened() if self._route.leaders[message.stage : message.stage + 1] == (peer,):
                self._unopened.discard(message.stage)
                self._held = min(self._held, message.held)
            case Step():
                await self._relay(self._route, message)
            case Token() if peer == self._route.leaders[-1]:
                self._take(self._route, message)
            case Busy() | Fail() | Moved():
                raise refusal_of(peer, message, self._route.members)
            case _:
                logger.warning("%s of %s makes no sense here", type(message).__name__, short(peer))

    async def _relay(self, route: Route, step: Step) -> None:
        """Two stages cannot reach each other: carry the step to the one it is for."""
        await self._send(route.leaders[step.stage], step)

    def _take(self, route: Route, message: Token) -> None:
        fresh = self.transcript.add(message.position, message.ids, message.finish)
        if not fresh:
            return
        self._pace.token()
        self._faults = 0
        self.drafted += message.drafted
        self.accepted += min(message.drafted, len(message.ids) - 1)
        self._listener.time(route, message.hops)
        for count, token in enumerate(fresh, 1):
            if self._listener.take(token):
                self.transcript.stop(unwanted=len(fresh) - count)
                return

    async def _recover(self, error: PeerError) -> None:
        """Make ready for another route, or raise if waiting has become pointless."""
        logger.info("session %s: %s", self.id[:8], error)
        suspects = {error.peer} if error.peer else set(self._route.leaders if self._route else ())
        await self._leave()
        retry_after = error.retry_after_seconds if isinstance(error, PeerRefused) else 0.0
        self._faults += type(error) is PeerRefused and not retry_after
        if self._pace.left_seconds() <= 0 or self._faults >= self._patience.faults:
            raise error
        self._trouble = error
        self._pace.replays += not retry_after
        for peer in suspects:  # who fails for the first time may be tried again at once
            rest = self._patience.pause_seconds if peer in self._rests else 0.0
            self._rests[peer] = self._clock() + max(rest, retry_after)

    async def _leave(self) -> None:
        """Tell every stage of the route that it may free the session; never raises."""
        route, self._route = self._route, None
        if route is None:
            return
        self._routes.leave(route)
        kind = Close if self.transcript.finish else Cancel
        goodbye = kind(self.id, self._epoch, self._key)
        there = [(leader, goodbye) for leader in set(route.leaders) - self._lost]
        with suppress(SwarmError):
            await self._send_all(there, self._patience.leave_seconds)

    async def _send_all(
        self, messages: Sequence[tuple[str, Message]], timeout_seconds: float
    ) -> None:
        sends = (
            self._channel.send(peer, message, timeout_seconds=timeout_seconds)
            for peer, message in messages
        )
        results = await asyncio.gather(*sends, return_exceptions=True)
        for error in filter(None, results):
            raise error

    async def _send(self, peer: str, message: Message) -> None:
        seconds = max(self._pace.wait_seconds(), 0.0)
        await self._channel.send(peer, message, timeout_seconds=seconds)

    def _is_mine(self, peer: str, message: Message) -> bool:
        if self._route is None or peer not in self._route.leaders:
            return False
        if not isinstance(message, SessionMessage | Fail | Moved):
            return False
        if (message.session, message.epoch) != (self.id, self._epoch):
            return False
        if isinstance(message, Fail | Moved):
            return True
        return hmac.compare_digest(message.key, self._key)

    def _too_late(self) -> Deadline:
        silent = [self._route.leaders[hop] for hop in self._unopened] if self._route else []
        who = f"Peer {short(silent[0])}" if len(silent) == 1 else "The swarm"
        return Deadline(
            f"{who} did not answer in time.",
            "See `swarm status`; allow more time if the peers are slow.",
            peer=silent[0] if len(silent) == 1 else "",
        )
