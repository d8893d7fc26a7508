"""A peer without a model, as a process on some host: it joins, and says how it reaches the others.

Prints a JSON line whenever something changes: the role that it took, its working relays, how each
other peer is reached, by its name, who answers it or does not, and that it has tried all it can to
reach a peer directly. `at` is the system's monotonic clock.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from node.control.direct_links import TRIES, DirectLinks
from node.control.reachability import Reachability, ReachState, find_relays
from swarm.errors import SwarmError
from swarm.network import HeldNetwork, hold_network
from swarm.p2p.addresses import own_multiaddrs
from swarm.p2p.dial_back import QUESTION, DialBack
from swarm.p2p.identity_probe import is_peer_at
from swarm.p2p.p2pd_process import Network
from swarm.p2p.relays import is_probably_private, relays_among
from swarm.records import Capability
from swarm.trust.identity import Identity

SECONDS = 1.0  # between looks, and between two questions to a peer
ANSWER_SECONDS = 2.0


class LightPeer:
    """What a node does about its way to the others, and nothing else."""

    def __init__(self, name: str, held: HeldNetwork, swarm: str) -> None:
        self._held = held
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
        channel.listen(lambda peer, message: None, lambda peer, reason: None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reach.run())
            tasks.create_task(self._links.run(self._say_kinds))
            tasks.create_task(self._look(tasks))

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            with suppress(SwarmError):
                await self._held.board.publish(self._own)
                self._known = await self._held.board.read(Capability)
            others = self._known.keys() - {self._held.daemon.peer} - self._asked
            for peer in others if self._held.network.is_private else ():
                self._asked.add(peer)
                tasks.create_task(self._ask(peer))
            await asyncio.sleep(SECONDS)

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
        self._links.own = state
        self._say(reachable=state.is_reachable, relays=len(state.relays), home=state.home)

    def _say_kinds(self, kinds: Mapping[str, str]) -> None:
        self._say(
            kinds={self._known[p].name: kind for p, kind in kinds.items() if p in self._known}
        )

    def _say(self, **words: object) -> None:
        words["at"] = time.monotonic()
        print(json.dumps(words), flush=True)  # noqa: T201 (what the test reads)


async def main(name: str, port: str, swarm: str, *peers: str) -> None:
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
        await LightPeer(name, held, swarm).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
