"""A peer without a model, as a process on some host: it joins, and says how it reaches the others.

Prints a JSON line whenever something changes: the role that it took, its working relays, how each
other peer is reached, by its name, who answers it or does not, and that it has tried all it can to
reach a peer directly. `at` is the system's monotonic clock. A JSON line on its input, {"to": name,
"frames": n, "size": bytes, ...}, lets it send frames to another one, after hanging up where they
should begin "afresh".
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count

from node.network.direct_links import PAUSE_SECONDS, TRIES, DirectLinks
from node.network.reachability import Reachability, ReachState, find_relays
from swarm.errors import SwarmError
from swarm.hardware import DIRECT, RELAYED
from swarm.network import HeldNetwork, hold_network
from swarm.p2p.addresses import own_multiaddrs
from swarm.p2p.dial_back import QUESTION, DialBack
from swarm.p2p.identity_probe import is_peer_at
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import is_probably_private, relays_among
from swarm.records import Capability
from swarm.trust.identity import Identity
from swarm.wire.messages import KEY_BYTES, Message, Step

SECONDS = 1.0  # between looks, and between two questions to a peer
ANSWER_SECONDS = 2.0
SHY, FRANK = "shy", "frank"
SEND_SECONDS = 30.0  # for one frame


class Flow:
    """Numbered frames to a peer over the channel, and what came in of such ones."""

    def __init__(
        self, channel: LibP2PChannel, name_of: Callable[[str], str], say: Callable[..., None]
    ) -> None:
        self._channel, self._name_of, self._say = channel, name_of, say
        self._next: dict[str, int] = {}  # of a peer's frames
        self._bytes: dict[str, int] = {}
        channel.listen(self._hear, self._lose)

    async def send(
        self,
        peer: str,
        frames: int,
        size: int,
        pause_seconds: float = 0.0,
        *,
        counts_direct: bool = False,
    ) -> None:
        """Send so many frames, and say over which way, whenever that changes.

        Where only those over a direct connection count, others go out as long as there is none.
        """
        way, left = "", frames
        for at in count():
            if not left:
                return
            step = Step("flow", 1, bytes(KEY_BYTES), 0, at, 1, left == 1, "i32", body=bytes(size))
            try:
                await self._channel.send(peer, step, timeout_seconds=SEND_SECONDS)
            except SwarmError as error:
                self._say(unsent=at, why=str(error))
                return
            if way != (way := self._way_to(peer)):
                self._say(sends=self._name_of(peer), over=way)
            left -= way == DIRECT or not counts_direct
            await asyncio.sleep(pause_seconds)

    def _way_to(self, peer: str) -> str:
        stream = self._channel._connections[peer].stream
        return "" if stream is None else RELAYED if stream.is_relayed else DIRECT

    def _hear(self, peer: str, message: Message) -> None:
        if not isinstance(message, Step):
            return
        expected = self._next.get(peer, 0)
        if message.position != expected:
            self._say(disorder=message.position, expected=expected)
        self._next[peer] = message.position + 1
        self._bytes[peer] = self._bytes.get(peer, 0) + len(message.body)
        if message.sample:
            self._say(got=self._bytes[peer], of=self._name_of(peer), frames=self._next[peer])

    def _lose(self, peer: str, reason: str) -> None:
        self._say(lost=self._name_of(peer), why=reason)


class LightPeer:
    """What a node does about its way to the others, and nothing else."""

    def __init__(self, name: str, held: HeldNetwork, swarm: str, *, is_shy: bool) -> None:
        self._held = held
        self._is_shy = is_shy  # leaves it to libp2p how it reaches other private peers
        self._asked: set[str] = set()
        addresses = own_multiaddrs(held.network.host, held.network.port)
        outside = [each for each in addresses if "/ip4/11." in each]
        self._own = Capability(
            *("", [], [], name),
            reachable=not held.network.is_private,
            since=0.0,
            name=name,
            addresses=outside,
        )
        self._known: Mapping[str, Capability] = {}
        channel, board = held.channel, held.board
        self._links = DirectLinks(held.daemon, channel, lambda: self._known)
        self._reach = Reachability(held, channel, board, swarm, self._capabilities, self._note)
        channel.before_stream = self._links.wait_for
        channel.answer(QUESTION, DialBack(held.daemon.connected, is_peer_at).answer)
        channel.answer("alive", self._alive)
        self._flow = Flow(channel, self._name_of, self._say)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reach.run())
            tasks.create_task(self._links.run(self._say_kinds))
            tasks.create_task(self._look(tasks))
            tasks.create_task(self._obey(tasks))

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            with suppress(SwarmError):
                await self._held.board.publish(self._own)
                known = await self._held.board.read(Capability)
                if new := known.keys() - self._known.keys():
                    self._say(knows=[known[peer].name for peer in new])
                self._known = known
            others = self._known.keys() - {self._held.daemon.peer} - self._asked
            for peer in filter(self._is_asked, others):
                self._asked.add(peer)
                tasks.create_task(self._ask(peer))
            await asyncio.sleep(SECONDS)

    def _is_asked(self, peer: str) -> bool:
        """Whether to ask a peer of our own accord: public ones ask nobody, shy ones no private."""
        if not self._held.network.is_private:
            return False
        return self._known[peer].reachable or not self._is_shy

    async def _obey(self, tasks: asyncio.TaskGroup) -> None:
        """Begin every flow that a line of our input asks for, in JSON."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            wanted = json.loads(line)
            name = wanted.pop("to")
            peer = next(peer for peer, each in self._known.items() if each.name == name)
            if wanted.pop("afresh", False):
                await self._held.daemon.disconnect(peer)
                await asyncio.sleep(PAUSE_SECONDS)  # at once both sides would end the call
            tasks.create_task(self._flow.send(peer, **wanted))

    def _name_of(self, peer: str) -> str:
        return self._known[peer].name if peer in self._known else peer

    async def _ask(self, peer: str) -> None:
        """Ask a peer as long as it is known."""
        has_tried = False
        while peer in self._known:
            name, before = self._known[peer].name, time.monotonic()
            try:
                await self._held.channel.ask(peer, "alive", b"", timeout_seconds=ANSWER_SECONDS)
                self._say(heard=name)
            except SwarmError:
                self._say(missed=name, after=round(time.monotonic() - before, 2))
            if not has_tried and (has_tried := self._has_tried(peer)):
                self._say(tried=name)
            await asyncio.sleep(SECONDS)
        self._asked.discard(peer)

    def _has_tried(self, peer: str) -> bool:
        effort = self._links._efforts.get(peer)
        return effort is not None and effort.tries >= TRIES and not effort.is_under_way

    async def _capabilities(self) -> Mapping[str, Capability]:
        return self._known

    async def _alive(self, _peer: str, _payload: bytes) -> bytes:
        return b""

    def _note(self, state: ReachState) -> None:
        found = state.verdict.at if state.verdict else ()
        direct = () if state.is_private else (*found, *self._own.addresses)
        self._own = replace(
            self._own,
            reachable=state.is_reachable,
            relays=list(state.relays),
            local=list(state.local),
            home=state.home,
            addresses=list(dict.fromkeys(direct)),
        )
        if not self._is_shy:
            self._links.own = state
        self._say(reachable=state.is_reachable, relays=len(state.relays), home=state.home)

    def _say_kinds(self, kinds: Mapping[str, str]) -> None:
        self._say(
            kinds={self._known[p].name: kind for p, kind in kinds.items() if p in self._known}
        )

    def _say(self, **words: object) -> None:
        words["at"] = time.monotonic()
        print(json.dumps(words), flush=True)  # noqa: T201 (what the test reads)


async def main(name: str, port: str, swarm: str, manners: str, *peers: str) -> None:
    """Be a peer until killed."""
    own = own_multiaddrs("0.0.0.0", int(port))
    is_private = is_probably_private((), peers, own)
    network = Network(
        host="0.0.0.0",
        port=int(port),
        initial_peers=peers,
        is_private=is_private,
        relays=relays_among({}, {}, peers) if is_private else (),
    )
    async with hold_network(Identity.throwaway(), network, swarm, "") as held:
        await find_relays(held, held.board)
        print(json.dumps({"address": (await held.daemon.addresses())[0]}), flush=True)  # noqa: T201
        await LightPeer(name, held, swarm, is_shy=manners == SHY).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
