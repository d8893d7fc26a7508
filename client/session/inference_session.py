"""Session: one generation as an async iterator; opens routes, feeds the prompt, mends breaks."""

import asyncio
import logging
import math
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable

from client.generation import StageTimes
from client.request import Request
from client.routing.peer_scores import Cooldowns
from client.routing.route import Need, Route, place_of
from client.routing.route_finder import RouteFinder
from client.session.deadlines import Deadlines, Timeouts
from client.session.epoch import Epoch
from client.session.goodbyes import Goodbyes
from client.session.refusals import refusal_of
from client.session.reply_checks import FrameChecks
from client.session.successor import Successor
from client.session.transcript import Transcript
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
from swarm.formatting import short_id
from swarm.p2p.channel import Channel
from swarm.task_set import TaskSet
from swarm.wire.messages import (
    CHUNK_CAP,
    Busy,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Step,
    Token,
)
from swarm.wire.rules import Role, Side, State, is_legal
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_ids import ids_to_bytes

TIMEOUTS = Timeouts()
LONGEST_COOLDOWN_SECONDS = 5.0  # of a peer that failed a session, if there is no other to ask
WarmUp = Callable[[Request, Route], Awaitable[None]]  # on this very route; raises SwarmError

logger = logging.getLogger(__name__)


class Session:
    """One generation; iterate over its `tokens` and hand it what the channel says of it."""

    def __init__(
        self,
        channel: Channel,
        route_finder: RouteFinder,
        request: Request,
        timeouts: Timeouts = TIMEOUTS,
        warm_up: WarmUp | None = None,
    ) -> None:
        self.id = secrets.token_hex(16)
        sampling = request.sampling
        self.transcript = Transcript(request.ids, sampling.max_tokens, sampling.stop_ids)
        self.stage_times = StageTimes()
        self.last_route: Route | None = None
        self._channel, self._route_finder = channel, route_finder
        self._request, self._timeouts = request, timeouts
        self._clock = asyncio.get_running_loop().time
        chunks = -(-len(request.ids) // CHUNK_CAP)
        self._deadlines = Deadlines(timeouts, request.timeout_seconds, self._clock, chunks)
        self._warm_up = warm_up
        self._goodbyes = Goodbyes(channel, timeouts.leave_seconds)
        self._successor = Successor(self._find_beside, self._warm, timeouts)
        self._checks = FrameChecks(route_finder.spec, request)
        self._epoch: Epoch | None = None
        self._epochs = 0
        self._cooldowns = Cooldowns(  # who failed us, or was busy
            self._clock, timeouts.pause_seconds, LONGEST_COOLDOWN_SECONDS, free=1
        )
        self._tellers: set[str] = set()  # who has blamed another peer
        self._trouble: SwarmError = NoRoute("No peer was found.")
        self._faults: Counter[str] = Counter()  # refusals that time cannot mend, by peer
        self.cached_tokens = 0  # leading ids of the prompt that all stages of the first route had
        self.drafted = self.accepted = 0  # ids that the last stage guessed, and those it got right

    @property
    def replays(self) -> int:
        """How often the session had to start again on another route."""
        return self._deadlines.replays

    @property
    def waits_for(self) -> str:
        """What comes next, in words for a person who waits."""
        if self._epoch is not None:
            return "the stages of the route" if self._epoch.unopened else "the next token"
        return f"{'another' if self._epochs else 'a'} route: {self._trouble.cause}"

    def receive(self, peer: str, message: Message) -> None:
        """Take a message that names this session, from the channel."""
        epoch = self._epoch
        if epoch is not None and epoch.is_of(peer, message):
            fault = self._checks.fault_of(message, len(epoch.route.stages))
            cause = f"Peer {short_id(peer)} sent {fault}."
            epoch.inbox.put(peer, PeerMisbehaved(cause, peer=peer) if fault else message)

    def lose(self, peer: str, reason: str) -> None:
        """Learn from the channel that a peer's stream ended."""
        if self._epoch is not None:
            self._epoch.lose(peer, reason)

    def carries(self, step: Step) -> bool:
        """Whether a step is to go on to another peer than this one, whose node may lead stages."""
        leaders = self._epoch.route.leaders if self._epoch else ()
        return leaders[step.stage : step.stage + 1] not in ((), (self._channel.peer,))

    async def tokens(self) -> AsyncGenerator[int, None]:
        """The new ids in order, over as many routes as it takes; raises SwarmError.

        Holds KV at every stage of the route; frees it in every case: at the end, closed, cancelled.
        Whoever reads keeps the session going: a slow reader is a slow client.
        """
        try:
            while not self.transcript.finish:
                try:
                    await self._advance()
                except PeerError as error:
                    await self._recover(error)
                for token in self.transcript.unread():
                    yield token
        finally:
            await self._successor.close()
            self._leave()
            await self._goodbyes.close()

    def prefer(self, route: Route) -> None:
        """Begin on this route, whatever others there are."""
        self._successor.prefer(route)

    def stop(self) -> None:
        """End with the id that was read last: a stop string is complete."""
        self.transcript.stop()

    async def _advance(self) -> None:
        """Do what comes next: take a route and feed it the prompt, or handle what a peer said."""
        if self._epoch is not None:
            await self._handle_next(self._epoch)
            return
        route = self._successor.take()
        await self._follow(route or await self._find_route())

    async def _find_route(self) -> Route:
        """Wait for a route, and for those of its peers that asked to be left alone a while.

        Only the session's own deadline ends the wait: a peer that joins meanwhile saves it.
        """
        fresh, pause = self._epochs > 0, self._timeouts.pause_seconds
        while True:
            rest = pause
            try:
                async with asyncio.timeout(max(self._deadlines.left_seconds(), 0)):
                    route = await self._route_finder.find(self._need(), fresh=fresh)
                rest = self._cooldowns.seconds_left(route.leaders)
                if rest <= 0:
                    return route
            except (NoRoute, Unreachable) as error:
                self._trouble = error
            except TimeoutError:
                logger.info("session %s: no word from the board", self.id[:8])
            left = self._deadlines.left_seconds()
            if left <= 0:
                raise self._trouble
            await asyncio.sleep(min(rest, pause, left))
            fresh, pause = True, min(1.5 * pause, self._timeouts.longest_pause_seconds)

    async def _find_beside(self, peers: frozenset[str]) -> Route:
        """A route by what the board says now, without these peers if that can be."""
        return await self._route_finder.find(self._need(avoid=peers), fresh=True)

    def _need(self, avoid: frozenset[str] = frozenset()) -> Need:
        spec, ends = self._route_finder.spec, self._route_finder.trusted_ends
        avoid |= self._cooldowns.all
        strikes, capacity = self._cooldowns.strikes, self._request.capacity
        return Need(spec.digest, spec.layers, capacity, avoid, strikes, ends)

    async def _follow(self, route: Route) -> None:
        self._epochs += 1
        epoch = Epoch(self.id, self._epochs, route, self._most_held())
        self._enter(epoch)
        ids = self.transcript.ids
        await self._open(epoch)
        self._deadlines.expect(-(-(len(ids) - epoch.held) // CHUNK_CAP))
        for step in epoch.steps(ids):
            while not epoch.inbox.is_empty:  # rows to relay, or a refusal: not only at the end
                await self._handle_next(epoch)
            await self._send(route.leaders[0], step)

    def _enter(self, epoch: Epoch) -> None:
        """Go on with this one; what another route has said of later ids does not count."""
        self._epoch, self.last_route = epoch, epoch.route
        self._route_finder.enter(epoch.route)
        self.transcript.begin_epoch()
        self._deadlines.expect()
        logger.info("session %s epoch %d over %s", self.id[:8], epoch.number, epoch.route.to_wire())

    def _most_held(self) -> int:
        """How many ids stages may hold; stages between trusted ends cannot know what they do."""
        return 0 if self._route_finder.trusted_ends else len(self.transcript.ids) - 1

    async def _open(self, epoch: Epoch) -> None:
        async with TaskSet() as sends:
            for hop, leader in enumerate(epoch.route.leaders):
                sends.create("opening", self._post(epoch, leader, self._open_for(epoch, hop)))
            await self._await_opened(epoch)
        if self._epochs == 1:
            self.cached_tokens = epoch.held
        ids = len(self.transcript.ids)
        logger.debug("session %s: %d of %d ids are held", self.id[:8], epoch.held, ids)

    async def _post(self, epoch: Epoch, peer: str, message: Message) -> None:
        """Send beside other work; a failure comes in as if the peer had told it."""
        try:
            await self._send(peer, message)
        except PeerError as error:
            epoch.inbox.put(peer, error)

    async def _await_opened(self, epoch: Epoch) -> None:
        """Wait for every OPENED; a peer that keeps silent is left early if there is another."""
        since, may_leave = self._clock(), True
        while epoch.unopened:
            until = since + self._open_seconds(epoch) if may_leave else math.inf
            await self._handle_next(epoch, until=until)
            if may_leave and epoch.unopened and self._clock() >= since + self._open_seconds(epoch):
                if await self._has_other_way(epoch):
                    raise self._too_late(epoch)
                may_leave = False

    def _open_seconds(self, epoch: Epoch) -> float:
        """How patient to be: what a way takes is known once something has passed over it."""
        ways = map(self._channel.round_trip_seconds, epoch.silent)
        return self._deadlines.open_seconds(max((way or 0.0 for way in ways), default=0.0))

    async def _has_other_way(self, epoch: Epoch) -> bool:
        """Whether some route avoids the peers that have not answered our OPEN."""
        silent = frozenset(epoch.silent)
        try:
            route = await self._route_finder.find(self._need(avoid=silent), fresh=False)
        except (NoRoute, Unreachable):
            return False
        return route.members.isdisjoint(silent) and self._cooldowns.seconds_left(route.leaders) <= 0

    def _open_for(self, epoch: Epoch, hop: int) -> Open:
        is_last = hop == len(epoch.route.stages) - 1
        return Open(
            epoch.session,
            epoch.number,
            epoch.key,
            stage=hop,
            route=epoch.route.to_wire(),
            model=self._route_finder.spec.digest,
            capacity=self._request.capacity,
            generated=len(self.transcript.generated),
            sampling=self._request.sampling.for_stages() if is_last else {},
            body=ids_to_bytes(self._ids_for(hop, is_last=is_last)),
        )

    def _ids_for(self, hop: int, *, is_last: bool) -> list[int]:
        """The ids so far; as many of no meaning for a stage between trusted ends.

        Such a stage finds shared beginnings by them, and computes with hidden rows alone.
        """
        ids = self.transcript.ids
        if not self._route_finder.trusted_ends or hop == 0 or is_last:
            return ids
        return [secrets.randbelow(self._route_finder.spec.vocab) for _ in ids]

    async def _handle_next(self, epoch: Epoch, until: float = math.inf) -> None:
        """Handle what comes next; return without anything once it is `until`."""
        wait = min(self._deadlines.wait_seconds(), until - self._clock())
        try:
            async with asyncio.timeout(max(wait, 0)):
                peer, message = await epoch.inbox.get()
        except TimeoutError as error:
            if self._deadlines.wait_seconds() > 0:
                return
            raise self._too_late(epoch) from error
        if isinstance(message, PeerError):
            raise message
        await self._handle(epoch, peer, message)

    async def _handle(self, epoch: Epoch, peer: str, message: Message) -> None:
        roles = _roles_of(peer, message, epoch.route)
        if not is_legal(type(message), roles, Side.CLIENT, State.OPEN):
            logger.warning("%s of %s makes no sense here", type(message).__name__, short_id(peer))
            return
        match message:
            case Opened():
                epoch.note(message)
            case Step():
                await self._relay(epoch.route, message)
            case Token():
                self._take(epoch.route, message)
            case Moved() if self._can_stay(epoch):
                self._prepare_to_move(epoch, peer)
            case Busy() | Fail() | Moved():
                raise refusal_of(peer, message, epoch.route.members)

    def _can_stay(self, epoch: Epoch) -> bool:
        """Whether it pays to go on for a while where a stage is leaving: tokens come from there."""
        return not epoch.unopened and self._deadlines.knows_pace

    def _prepare_to_move(self, epoch: Epoch, peer: str) -> None:
        """Make another route ready beside this one, which may end at any time."""
        self._deadlines.hurry()
        epoch.leaving.add(peer)
        leaving = frozenset(
            place for place in map(place_of, epoch.route.stages) if place[0] == peer
        )
        gone = PeerLost(f"Peer {short_id(peer)} is leaving.", peer=peer)
        self._successor.prepare(leaving, lambda: epoch.inbox.put(peer, gone))

    async def _warm(self, route: Route) -> None:
        """Let the stages of a route compute the ids so far, if they may share their rows later."""
        if self._warm_up and not self._route_finder.trusted_ends:
            sampling, seconds = Sampling(max_tokens=1), self._request.timeout_seconds
            await self._warm_up(Request(tuple(self.transcript.ids), sampling, seconds), route)

    async def _relay(self, route: Route, step: Step) -> None:
        """Two stages cannot reach each other: carry the step to the one it is for."""
        await self._send(route.leaders[step.stage], step)

    def _take(self, route: Route, message: Token) -> None:
        logprobs = self._checks.logprobs_of(message)
        fresh = self.transcript.add(message.position, message.ids, message.finish, logprobs)
        if not fresh:
            return
        took = self._deadlines.token()
        if took is not None:
            self._route_finder.took(route, message.hops, took)
        self._faults.clear()
        self.drafted += message.drafted
        self.accepted += min(message.drafted, len(message.ids) - 1)
        self.stage_times.add(route, message.hops)

    async def _recover(self, error: PeerError) -> None:
        """Make ready for another route, or raise if waiting has become pointless."""
        logger.info("session %s: %s", self.id[:8], error)
        suspects = self._suspects_of(error)
        self._leave()
        retry_after = error.retry_after_seconds if isinstance(error, PeerRefused) else 0.0
        if not (retry_after or error.told_by):
            self._route_finder.failed(suspects, error)
        self._faults.update(suspects if type(error) is PeerRefused and not retry_after else ())
        if self._deadlines.left_seconds() <= 0 or self._is_hopeless():
            raise error
        self._trouble = error
        self._deadlines.replays += not retry_after
        for peer in suspects:
            self._cooldowns.strike(peer, weight=not retry_after, at_least=retry_after)

    def _is_hopeless(self) -> bool:
        return max(self._faults.values(), default=0) >= self._timeouts.faults

    def _suspects_of(self, error: PeerError) -> list[str]:
        """Who may be to blame; a peer that blames others twice is one of them."""
        if not error.peer:
            epoch = self._epoch
            return epoch.silent or list(epoch.route.leaders) if epoch else []
        if error.told_by in self._tellers:
            return [error.peer, error.told_by]
        self._tellers |= {error.told_by} - {""}
        return [error.peer]

    def _leave(self) -> None:
        """Tell every stage of the route that it may free the session; waits for none of them."""
        epoch, self._epoch = self._epoch, None
        if epoch is None:
            return
        self._route_finder.leave(epoch.route)
        if self.transcript.finish:
            self._route_finder.did_well(epoch.route)
        self._goodbyes.say(*epoch.goodbye(is_finished=bool(self.transcript.finish)))

    async def _send(self, peer: str, message: Message) -> None:
        seconds = max(self._deadlines.wait_seconds(), 0.0)
        await self._channel.send(peer, message, timeout_seconds=seconds)

    def _too_late(self, epoch: Epoch) -> Deadline:
        silent = epoch.silent
        who = f"Peer {short_id(silent[0])}" if len(silent) == 1 else "The swarm"
        return Deadline(
            f"{who} did not answer in time.",
            "See `swarm status`; allow more time if the peers are slow.",
            peer=silent[0] if len(silent) == 1 else "",
        )


def _roles_of(peer: str, message: Message, route: Route) -> frozenset[Role]:
    """What the sender of a message is to a session on a route."""
    leaders = route.leaders
    roles = {Role.ANY_STAGE} if peer in leaders else set()
    if leaders[-1] == peer:
        roles.add(Role.LAST_STAGE)
    if isinstance(message, Opened) and leaders[message.stage : message.stage + 1] == (peer,):
        roles.add(Role.NAMED_STAGE)
    return frozenset(roles)
