"""The whole node: join, advertise, stand for election, follow the plan, serve, leave."""

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from node.config import NodeConfig
from node.control.announcer import Announcer
from node.control.board_watcher import ROUND_SECONDS, BoardWatcher, Control
from node.control.certification import Certification
from node.control.leader_election import LeaderElection
from node.control.local_rule import LocalRule
from node.control.membership import Membership
from node.control.next_plan import problem_with
from node.control.plan_store import PlanStore
from node.control.planner_loop import PlannerLoop
from node.device.endpoint import Reach, group_host
from node.device.group_request import GroupRequest, GroupWord
from node.device.local_device import DeviceContext, LocalDevice
from node.device.open_devices import MeasuredDevice
from node.device.own_devices import OwnDevices
from node.network.bootstrap import NodeNetwork
from node.network.direct_links import DirectLinks
from node.network.link_monitor import LinkMonitor
from node.network.reachability import Reachability, ReachState
from node.owner.owner_questions import HostedClient, MakeClient
from node.probe import machine_id
from node.served_model import ServedModel, manifest_of
from node.serving.activation_format import ActivationFormat
from node.serving.stage_server import DRAIN_SECONDS, StageServer
from node.serving.weight_server import WeightServer
from node.status_lines import StatusLines
from swarm.checkpoint.folder_check import FolderCheck
from swarm.errors import SwarmError, Unreachable
from swarm.hardware import Links
from swarm.network import HeldNetwork
from swarm.p2p.dial_back import QUESTION as DIAL_BACK
from swarm.p2p.dial_back import DialBack
from swarm.p2p.identity_probe import is_peer_at
from swarm.records import Capability, Trouble
from swarm.task_set import TaskSet, supervise
from swarm.trust.certificates import PlannerTrust
from swarm.trust.network_clock import CLOCK
from swarm.wire.version import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

RECONCILE_SECONDS = 0.2
SETTLE_SECONDS = 1.0  # after which a vacancy is one
LEAVE_SECONDS = DRAIN_SECONDS + 1.5
REPORT_SECONDS = 60.0
VACANT_SECONDS = 60.0  # without a planner, after which the node says so
UNREACHED_SECONDS = 20.0  # for a place at a relay to be found, before its lack is news


class Node:
    """One node among others; it serves from `run` until it is told to stop."""

    def __init__(
        self, config: NodeConfig, served: ServedModel, network: NodeNetwork, status: StatusLines
    ) -> None:
        self._config = config
        self._served = served
        self._network = network
        self._status = status
        channel, board, swarm = network.channel, network.board, network.invite.swarm
        problem = partial(problem_with, spec=served.spec)
        self._plan_store = PlanStore(swarm, network.folder, channel, problem_of=problem)
        trust = PlannerTrust(swarm, is_private=bool(network.invite.key))
        self._membership = Membership(swarm, served.spec.digest, board, channel, trust)
        self._certification = Certification(
            network.identity, trust, network.folder, channel, trusted=frozenset(config.trusted)
        )
        speed_to = self._membership.bytes_per_second_to
        activation_format = ActivationFormat(
            config.activations, served.spec.hidden, speed_to, status.link
        )
        spec = served.spec
        self._server = StageServer(
            channel, spec.digest, activation_format.use_int8, context=spec.context
        )
        self._election = LeaderElection(channel.peer, board, self._membership)
        self._planner_loop = PlannerLoop(
            served.spec, board, self._membership, self._election, self._plan_store
        )
        self._devices = OwnDevices(self._plan_store, status)
        self._announcer: Announcer | None = None
        self._reached_at = time.monotonic()
        self._tasks = TaskSet()
        self._weight_server = WeightServer(channel, served.folder)
        self._reachability: Reachability | None = None
        self._direct_links: DirectLinks | None = None
        if network.held:
            self._find_ways(network.held)
        self._link_monitor = LinkMonitor.of_node(
            channel,
            machine_id(),
            self.is_generating,
            lambda: self._membership.capabilities,
        )
        dial_back = DialBack(network.process.connected, is_peer_at)
        channel.answer(DIAL_BACK, dial_back.answer)
        channel.answer("group", self._answer_group)
        control = Control(
            self._membership,
            self._certification,
            self._election,
            self._planner_loop,
            self._plan_store,
            LocalRule(swarm, served.spec, self._membership, self._plan_store),
        )
        self._board_watcher = BoardWatcher(control, channel, self)

    def _find_ways(self, held: HeldNetwork) -> None:
        """Prepare to find out who reaches us, and to make links direct, over a real network."""
        channel, board, swarm = held.channel, self._network.board, self._network.invite.swarm
        self._reachability = Reachability(
            held, channel, board, swarm, self._capabilities, self._note_reach
        )
        self._direct_links = DirectLinks(
            held.daemon, channel, lambda: self._membership.capabilities
        )
        channel.before_stream = self._direct_links.wait_for

    # ------------------------------------------------------------------ the whole of it

    async def run(self, devices: list[MeasuredDevice], stop: asyncio.Event) -> None:
        """Serve with these devices until `stop` is set; raises Unreachable if p2pd dies."""
        self._add_devices(devices)
        loops = {
            "watching the board": self._board_watcher.run,
            "tending the devices": self._reconcile,
            "publishing records": self._publish,
            "measuring links": self._measure,
            "handing out files": self._serve_weights,
            "telling what was served": self._report_service,
            "keeping the founder's word": self._network.manifests.keep,
            "finding out who reaches us": self._watch_reach,
            "making links direct": self._watch_links,
        }
        if self._network.admissions:
            loops["sharing revocations"] = self._network.admissions.share
        work = {name: supervise(name, loop) for name, loop in loops.items()}
        work |= {"p2pd": self._daemon_given_up(), "the copy": self._copy_refused()}
        if self._network.admissions:
            work["our membership"] = self._network.admissions.until_revoked()
        create = partial(self._tasks.create, is_awaited=True)
        try:
            tasks = [create(name, each) for name, each in work.items()]
            stopping = create("the end", stop.wait())
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            await self._tasks.close()
            await self._devices.stop_tending()
            await self._leave()

    def _add_devices(self, devices: list[MeasuredDevice]) -> None:
        host = group_host(self._config.listen)
        folder = str(self._served.folder)
        channel = self._network.channel
        quant = self._config.quant
        store = self._served.store
        process = self._network.process
        reach = Reach(machine_id(), process.addresses, process.connected)
        context = DeviceContext(
            channel=channel,
            server=self._server,
            plan_store=self._plan_store,
            folder=folder,
            store=store,
            quant=quant,
            host=host,
            reach=reach,
            is_serving=self._membership.is_serving,
            others=self._membership.served_by_others,
        )
        for each in devices:
            device = each.device
            budget = device.memory_bytes + self._config.sessions_bytes
            own = LocalDevice(context, device.index, budget, each.worker)
            each.worker.listen(own.on_answer)
            each.worker.listen(partial(self._server.on_answer, device.index))
            self._devices.by_index[device.index] = own
        capability = Capability(
            model=self._served.spec.digest,
            devices=[each.device for each in devices],
            links=[],
            host=machine_id(),
            reachable=not (self._network.held and self._network.held.network.is_private),
            since=CLOCK.now(),
            name=self._config.name,
            version=version("hexgen-swarm"),
            addresses=[each.partition("/p2p/")[0] for each in self._network.addresses],
            protocol=PROTOCOL_VERSION,
        )
        self._announcer = Announcer(
            self._network.board,
            self._membership,
            self._plan_store,
            self._server,
            capability,
            troubles=self._troubles,
        )

    def _troubles(self) -> list[Trouble]:
        return self._devices.troubles

    async def _daemon_given_up(self) -> None:
        await self._network.process.given_up.wait()
        raise Unreachable("The network daemon p2pd ended for good.", "Start the node again.")

    async def _copy_refused(self) -> None:
        store = self._served.store
        if isinstance(store, FolderCheck):
            raise await store.refused()
        await asyncio.Event().wait()

    # ------------------------------------------------------------------ others

    @property
    def own_capability(self) -> Capability | None:
        """What we offer, once our devices are known."""
        return self._announcer.capability if self._announcer else None

    @property
    def asks_for_adverts(self) -> bool:
        """Whether a device has let a shard go, or is about to: who serves instead?"""
        return self._devices.dropped_lately or self._devices.gives_way

    def note_look(self, *, adopted: bool) -> None:
        """Show what a look at the board has brought."""
        if adopted:
            self._show_plan()
        elif self._plan_store.accepted:
            self._status.waiting(self._plan_store.accepted.reason)
        self._show_planner()
        self._show_reach()

    def _show_planner(self) -> None:
        """Say when nobody plans for long, and note when somebody does again."""
        vacant = time.monotonic() - self._membership.vacant_since
        if self._election.holds or vacant < SETTLE_SECONDS:
            self._status.planned_again()
        elif vacant > VACANT_SECONDS:
            self._status.unplanned()

    def is_calm(self) -> bool:
        """Whether the plan is followed and some device serves: nothing starts, loads or is lost."""
        return self._devices.is_serving and self.is_settled

    def is_generating(self) -> bool:
        """Whether a session is open at a stage that a device of ours leads, or is a rank of."""
        return self._server.sessions > 0 or self._devices.follows_sessions

    def _show_reach(self) -> None:
        """Say when nobody can reach us, so that no plan has a part for us.

        Whoever has just joined, or changes relays, has no place at one for some seconds.
        """
        me, now = self._network.channel.peer, time.monotonic()
        if me not in Links.of(self._membership.capabilities).unreached:
            self._reached_at = now
            self._status.reached()
        elif now - self._reached_at > UNREACHED_SECONDS:
            self._status.unreached()

    @property
    def is_settled(self) -> bool:
        """Whether there is a plan, and no device of ours still loads."""
        return self._plan_store.accepted is not None and self._devices.is_settled

    def _show_plan(self) -> None:
        accepted = self._plan_store.accepted
        assert accepted is not None
        assert self._announcer is not None
        if accepted.reason:
            self._status.waiting(accepted.reason)
            return
        self._devices.show_parts(accepted.planner, accepted.term)
        self._announcer.publish_soon()  # others learn which term we follow

    async def _answer_group(self, peer: str, payload: bytes) -> bytes:
        request = GroupRequest.from_bytes(payload)
        device = self._devices.require(request.device)
        if request.word == GroupWord.LEAVE:
            return await device.let_go(peer, request)
        if not device.expects(peer, request) and self._board_watcher.may_hurry(peer):
            await self._board_watcher.catch_up()
        return await device.called(peer, request)

    # ------------------------------------------------------------------ our own devices

    async def _reconcile(self) -> None:
        while True:
            self._devices.tend()
            self._server.free_idle()
            await asyncio.sleep(RECONCILE_SECONDS)

    async def pause(self) -> None:
        """Give the devices back to their owner, and stay a member: sessions go on elsewhere."""
        assert self._announcer is not None
        self._announcer.note_pause(is_paused=True)
        await self._devices.pause()

    def resume(self) -> None:
        """Offer the devices again."""
        assert self._announcer is not None
        self._devices.resume()
        self._announcer.note_pause(is_paused=False)

    def host(self, make: MakeClient) -> HostedClient:
        """Let a client share our board and channel: what is for our stages still comes to them."""
        network = self._network
        return make(
            network.board, network.channel, self._served.spec, self._server, self._plan_document
        )

    def _plan_document(self) -> bytes:
        accepted = self._plan_store.accepted
        return accepted.to_bytes() if accepted else b""

    def facts(self) -> dict[str, Any]:
        """What this node is and does now, in plain values."""
        return {
            "peer": self._network.channel.peer,
            "name": self._config.name,
            "swarm": self._network.invite.swarm,
            "sessions": self._server.sessions,
            "devices": self._devices.facts(),
            "plan": self._plan_document(),
        }

    # ------------------------------------------------------------------ the board

    async def _publish(self) -> None:
        assert self._announcer is not None
        while True:
            try:
                manifest = manifest_of(self._served, self._weight_server.digest)
                if self._config.founds:
                    self._network.manifests.say(manifest, self._network.identity.sign)
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._announcer.publish_due(manifest if self._config.founds else None)
            except SwarmError as error:
                logger.warning("a record was not published: %s", error)
            await asyncio.sleep(RECONCILE_SECONDS)

    async def _measure(self) -> None:
        """Keep the figures of our links right; never ends."""
        assert self._announcer is not None
        await self._link_monitor.run(self._announcer.note_links)

    async def _watch_reach(self) -> None:
        """Find out how others reach us, and stand in the network accordingly; never ends."""
        if self._reachability is None:
            await asyncio.Event().wait()
        else:
            await self._reachability.run()

    async def _watch_links(self) -> None:
        """See to it that links are direct where they can be, and say how they go; never ends."""
        assert self._announcer is not None
        if self._direct_links is None:
            await asyncio.Event().wait()
        else:
            await self._direct_links.run(self._announcer.note_kinds)

    async def _capabilities(self) -> Mapping[str, Capability]:
        return self._membership.capabilities

    def _note_reach(self, state: ReachState) -> None:
        assert self._announcer is not None
        self._announcer.note_reach(state)
        self._reached_at = time.monotonic()  # or just about to be
        if self._direct_links:
            self._direct_links.own = state
        if state.verdict or state.relays:  # before that, it is too early to say
            self._status.reach(state)

    async def _serve_weights(self) -> None:
        """Let peers have the model's files; never ends."""
        if self._config.founds and self._served.is_for_all:
            await self._weight_server.open_as_founder()
        elif not self._config.founds:
            find = self._network.manifests.find
            await self._weight_server.open_when_known(self._network.board, self._served.store, find)
        await asyncio.Event().wait()

    async def _report_service(self) -> None:
        """Say every minute what was served; never ends."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if words := self._server.counters.take(time.monotonic()):
                self._status.served(words)

    # ------------------------------------------------------------------ the end

    async def _leave(self) -> None:
        devices = self._devices.by_index.values()
        ends = [end for each in devices for end in (each.leave(), each.weight_fetch.close())]
        last_words = [self._server.close(), self._election.resign(), *ends]
        if self._announcer:
            last_words.append(self._announcer.withdraw())
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await asyncio.gather(*last_words)
        except Exception:  # an island: what goes wrong now must not hide why we leave
            logger.warning("left without saying so", exc_info=True)
        self._status.left()
