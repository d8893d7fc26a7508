"""GroupRendezvous: how the devices of a stage find each other before they load.

The leader lets every member listen and tells each where the others do; then all dial and load.
"""

import asyncio
from dataclasses import replace

from node.device.endpoint import Endpoint, Reach
from node.device.group_request import GroupRequest, GroupWord
from node.worker.messages import Rank
from node.worker.worker_handle import WorkerProcess
from swarm.p2p.channel import Channel
from swarm.plan import Assignment

GATHER_SECONDS = 30.0  # for one member's answer: its worker may be starting


class GroupRendezvous:
    """One device's part in it, as a leader that gathers and tells, or as a member that answers."""

    def __init__(self, channel: Channel, reach: Reach, worker: WorkerProcess, host: str) -> None:
        self._channel = channel
        self._reach = reach
        self._worker = worker
        self._host = host  # where our worker listens

    async def lead(self, assignment: Assignment, group: str) -> list[Rank]:
        """Gather the group, tell every member, and say whom we dial; raises SwarmError."""
        if len(assignment.stage.shards) == 1:
            return []
        endpoints = await self._gather(assignment, group)
        await self._ask_all(GroupWord.LOAD, assignment, group, endpoints)
        return await self.ranks(assignment, endpoints)

    async def listen(self, group: str) -> Endpoint:
        """Let our worker listen for a group, and say where; raises SwarmError."""
        prepared = await self._worker.prepare(group, self._host)
        return await self._reach.endpoint(prepared.port, prepared.certificate)

    async def ranks(self, assignment: Assignment, endpoints: tuple[Endpoint, ...]) -> list[Rank]:
        """Every rank as our worker dials it; raises PeerLost."""
        peers = [shard.peer for shard in assignment.stage.shards]
        return await self._reach.ranks(peers, endpoints, assignment.rank)

    async def say_leaving(self, assignment: Assignment, group: str, timeout_seconds: float) -> None:
        """Tell our leader, and wait until nobody needs the group any more; raises SwarmError."""
        payload = GroupRequest.of_leaving(group, assignment).to_bytes()
        leader = assignment.stage.shards[0].peer
        await self._channel.ask(leader, "group", payload, timeout_seconds=timeout_seconds)

    async def _gather(self, assignment: Assignment, group: str) -> tuple[Endpoint, ...]:
        own = await self.listen(group)
        answers = await self._ask_all(GroupWord.PREPARE, assignment, group)
        return (own, *map(Endpoint.from_bytes, answers))

    async def _ask_all(
        self,
        word: GroupWord,
        assignment: Assignment,
        group: str,
        endpoints: tuple[Endpoint, ...] = (),
    ) -> list[bytes]:
        """The answers of all ranks but ours, in order."""
        others = range(1, len(assignment.stage.shards))
        parts = [replace(assignment, rank=rank) for rank in others]
        requests = [GroupRequest.of(word, group, part, endpoints) for part in parts]
        peers = [assignment.stage.shards[rank].peer for rank in others]
        return await asyncio.gather(*map(self._ask, peers, requests))

    async def _ask(self, peer: str, request: GroupRequest) -> bytes:
        payload = request.to_bytes()
        return await self._channel.ask(peer, "group", payload, timeout_seconds=GATHER_SECONDS)
