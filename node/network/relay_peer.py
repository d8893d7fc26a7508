"""`swarm relay`: a peer without a model that carries connections to nodes behind routers.

Its p2pd does the work. This process shows it on the board, dials back who asks, and says whether
others reach it: a relay behind a router is none.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from node.config import NodeConfig, announced_at, listened_at
from node.network.bootstrap import NodeNetwork, daemon_network, open_identity, open_network
from node.network.reachability import Reachability, ReachState, find_relays
from swarm.commands.command_line import Parser
from swarm.errors import SwarmError, Unreachable
from swarm.formatting import accept_any_text, short_id
from swarm.p2p.addresses import EVERY_ADDRESS, is_private, port_of
from swarm.p2p.dial_back import QUESTION as DIAL_BACK
from swarm.p2p.dial_back import DialBack
from swarm.p2p.identity_probe import is_peer_at
from swarm.p2p.p2p_daemon import open_p2p
from swarm.records import Capability, Relay
from swarm.state_folder import state_folder
from swarm.task_set import TaskSet, supervise
from swarm.trust.network_clock import CLOCK

PUBLISH_SECONDS = Relay.TTL_SECONDS / 4
RETRY_SECONDS = 2.0
LEAVE_SECONDS = 1.5
ADDRESSES_CAP = 8

Say = Callable[[str], None]


def main(arguments: Sequence[str]) -> int:
    """Be a relay until SIGINT or SIGTERM; raises SwarmError."""
    config = read_config(arguments)
    accept_any_text()
    live_so = live_alone if config.founds else live
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live_so(config, _say))
    return 0


def read_config(arguments: Sequence[str]) -> NodeConfig:
    """The config of a command line: that of a node without devices; raises BadInput.

    Who is alone founds, in a way: there is nobody to join.
    """
    given = _parser().parse_args(arguments)
    announced = tuple(map(announced_at, given.announce))
    return NodeConfig(
        founds=given.alone,
        invite=given.invite or os.environ.get("SWARM_INVITE", ""),
        name=given.name,
        listen=listened_at(given.listen),
        port=given.port or (port_of(announced[0]) if announced else 0),
        announce=announced,
        state=given.state or state_folder(os.environ),
    )


def _parser() -> Parser:
    made = Parser(
        prog="swarm relay",
        description="Carry connections to nodes that stand behind routers. It holds no model, and"
        " wants a public address.",
    )
    made.add_argument("invite", nargs="?", default="", help="of the swarm (default: the last one)")
    made.add_argument(
        *("--alone",),
        action="store_true",
        help="be in no swarm: carry connections to whoever names it with --relay, such as a founder"
        " behind a router, which nobody could join otherwise",
    )
    made.add_argument("--name", default="", help="what others see, besides the peer id")
    made.add_argument("--listen", default=EVERY_ADDRESS, metavar="ADDRESS")
    made.add_argument("--port", type=int, default=0, help="default: a free one")
    made.add_argument(
        *("--announce",),
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where others reach it, if it cannot see that itself",
    )
    made.add_argument("--state", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return made


async def live(config: NodeConfig, say: Say) -> None:
    """Carry connections until SIGINT or SIGTERM; raises SwarmError."""
    stop = _stop_at_signals()
    async with open_network(config, None, say) as network:
        if network.held:
            await find_relays(network.held, network.board)
        await RelayPeer(network, config.name, say).run(stop)


async def live_alone(config: NodeConfig, say: Say) -> None:
    """Carry connections of no swarm in particular; raises BadInput, Unreachable if p2pd ends."""
    stop = _stop_at_signals()
    async with AsyncExitStack() as stack:
        identity, _ = open_identity(config.state)
        stack.callback(identity.close)
        daemon = await open_p2p(identity, daemon_network(config, None))
        stack.push_async_callback(daemon.close)
        for line in alone_lines(await daemon.addresses()):
            say(line)
        tasks = await stack.enter_async_context(TaskSet())
        ended = tasks.create("p2pd", daemon.ended.wait(), is_awaited=True)
        stopping = tasks.create("the end", stop.wait(), is_awaited=True)
        await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise Unreachable("The network daemon p2pd ended.", "Start the relay again.")
    say("left: it relays no more")


def alone_lines(addresses: Sequence[str]) -> list[str]:
    """How to be reached through a relay at these addresses, one line for each that is public."""
    outside = [each for each in addresses if not is_private(each)]
    if not outside:
        return [
            "reach: this machine has no public address, so that it relays for nobody. Forward a"
            " port of the router to it: --port 4001 --announce ADDRESS:4001"
        ]
    return [f"relay: python -m swarm.node --host --relay {each}" for each in outside]


def _stop_at_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


class RelayPeer:
    """Shows itself on the board while others reach it, and answers their dial-backs."""

    def __init__(self, network: NodeNetwork, name: str, say: Say) -> None:
        self._network = network
        self._say = say
        self._addresses = tuple(each.partition("/p2p/")[0] for each in network.addresses)
        self._record = Relay([], CLOCK.now(), name, version("hexgen-swarm"))
        self._is_usable = True  # as long as nobody has found otherwise
        self._change = asyncio.Event()
        dial_back = DialBack(network.process.connected, is_peer_at)
        network.channel.answer(DIAL_BACK, dial_back.answer)
        network.channel.listen(lambda peer, message: None, lambda peer, reason: None)
        peer = short_id(network.channel.peer)
        say(f"relay: {name or 'unnamed'} ({peer}) for {network.invite.swarm}")

    async def run(self, stop: asyncio.Event) -> None:
        """Carry connections until told to stop; raises BadInvite if this machine is revoked."""
        admissions = self._network.admissions
        loops = {"showing the relay": self.show, "finding out who reaches us": self.watch}
        ends: dict[str, Coroutine[Any, Any, object]] = {
            "p2pd": self._network.process.given_up.wait(),
            "the end": stop.wait(),
        }
        if admissions:
            loops["sharing revocations"] = admissions.share
            ends["our membership"] = admissions.until_revoked()
        async with TaskSet() as tasks:
            for name, loop in loops.items():
                tasks.create(name, supervise(name, loop))
            ending = [tasks.create(name, each, is_awaited=True) for name, each in ends.items()]
            done, _ = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            await self.leave()
            for task in done:
                task.result()

    async def show(self) -> None:
        """Publish the record again and again; never ends."""
        while True:
            self._change.clear()
            pause = PUBLISH_SECONDS if await self._has_published() else RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._change.wait()

    async def watch(self) -> None:
        """Find out whether others reach us; never ends."""
        network = self._network
        assert network.held is not None

        async def capabilities() -> Mapping[str, Capability]:
            return await network.board.read(Capability)

        swarm = network.invite.swarm
        reach = Reachability(
            network.held, network.channel, network.board, swarm, capabilities, self.note
        )
        await reach.run()

    def note(self, state: ReachState) -> None:
        """Say what others found; a relay that they cannot dial is none."""
        if state.verdict is None:
            return
        found = state.verdict.at
        self._addresses = tuple(dict.fromkeys((*found, *self._addresses)))[:ADDRESSES_CAP]
        self._is_usable = state.is_reachable
        self._change.set()
        if state.is_reachable:
            self._say(f"reach: dialed back by {state.verdict.reached} of {state.verdict.tried}")
        else:
            self._say(
                "reach: nobody can dial this machine, so it relays for nobody. Forward a port of"
                " the router to it: --port 4001 --announce ADDRESS:4001"
            )

    async def leave(self) -> None:
        """Withdraw the record."""
        with suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._publish(is_leaving=True)
        self._say("left: record withdrawn")

    async def _has_published(self) -> bool:
        try:
            await self._publish(is_leaving=not self._is_usable)
        except SwarmError:
            return False
        return True

    async def _publish(self, *, is_leaving: bool) -> None:
        addresses = list(self._addresses)
        record = replace(self._record, addresses=addresses, leaving=is_leaving)
        await self._network.board.publish(record)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
