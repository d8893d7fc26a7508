"""LinkMonitor: keeps the figures of our links right, and tells of them when they change."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from node.network.link_estimates import LinkEstimates
from node.network.link_probe import LinkMeasurement, LinkProbe
from node.network.link_questions import answer_link_questions, measure_by_questions
from node.network.machine_lock import lock_of_machine
from node.network.measuring_schedule import MeasuringSchedule
from swarm.errors import PeerError, PeerRefused, RemoteProtocolError
from swarm.hardware import Link
from swarm.p2p.channel import StreamChannel

LOOK_SECONDS = 0.5
PINGS_SECONDS = 10.0  # between looks at the round trips of heartbeats

logger = logging.getLogger(__name__)


class LinkMonitor:
    """Measures newcomers, then seldom; what real work says of a link counts in between."""

    def __init__(
        self,
        channel: StreamChannel,
        probe: LinkProbe,
        estimates: LinkEstimates,
        peers: Callable[[], Collection[str]],
    ) -> None:
        self._channel = channel
        self._probe = probe
        self._estimates = estimates
        self._peers = peers
        self._schedule = MeasuringSchedule(channel.peer, estimates)
        self._told: list[Link] = []
        self._pings_at = 0.0

    @classmethod
    def of_node(
        cls,
        channel: StreamChannel,
        machine: str,
        is_generating: Callable[[], bool],
        peers: Callable[[], Collection[str]],
    ) -> "LinkMonitor":
        """The monitor of a node, which from now on lets others measure, too."""
        answer_link_questions(channel)
        estimates, lock = LinkEstimates(), lock_of_machine("links", machine)
        probe = LinkProbe(channel, machine, is_generating, estimates.note_measurement, lock)
        channel.listen_for_rates(estimates.note_frame, estimates.note_share)
        return cls(channel, probe, estimates, peers)

    async def run(self, tell: Callable[[list[Link]], None]) -> None:
        """Measure whoever is due, one at a time, and tell of what changes; never ends."""
        while True:
            peers = set(self._peers()) - {self._channel.peer}
            if peer := self._schedule.due(peers, time.monotonic()):
                await self._measure(peer)
            self._note_pings(peers)
            self._estimates.keep_only(peers)
            links = self._estimates.links()
            if links != self._told:
                self._told = links
                tell(links)
            await asyncio.sleep(LOOK_SECONDS)

    async def _measure(self, peer: str) -> None:
        schedule = self._schedule
        try:
            self._estimates.note_measurement(peer, await self._measured(peer))
        except PeerRefused as error:
            if error.retry_after_seconds:
                schedule.refused(peer, time.monotonic(), error.retry_after_seconds)
            else:
                schedule.failed(peer, time.monotonic())
        except (PeerError, RemoteProtocolError) as error:
            logger.info("the link to %s was not measured: %s", peer, error)
            schedule.failed(peer, time.monotonic())
        else:
            schedule.measured(peer, time.monotonic())

    async def _measured(self, peer: str) -> LinkMeasurement:
        try:
            return await self._probe.measure(peer)
        except PeerRefused as error:
            if error.retry_after_seconds:
                raise
            return await measure_by_questions(self._channel, peer)  # it knows no better way

    def _note_pings(self, peers: Collection[str]) -> None:
        now = time.monotonic()
        if now - self._pings_at < PINGS_SECONDS:
            return
        self._pings_at = now
        for peer in peers:
            if seconds := self._channel.round_trip_seconds(peer):
                self._estimates.note_round_trip(peer, seconds)
