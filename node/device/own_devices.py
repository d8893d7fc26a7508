"""OwnDevices: the devices of this node, each brought to its part in the plan, and what is said."""

import asyncio
import time
from typing import Any

from node.control.plan_store import PlanStore
from node.device.local_device import LocalDevice, Presence
from node.status_lines import StatusLines
from swarm.errors import PeerRefused
from swarm.records import Trouble
from swarm.task_set import TaskSet

SPARE_SECONDS = 15.0  # for the planner to plan with a newcomer


class OwnDevices:
    """Every device by its index; its owner lets them be tended again and again."""

    def __init__(self, plan_store: PlanStore, status: StatusLines) -> None:
        self._plan_store = plan_store
        self._status = status
        self.by_index: dict[int, LocalDevice] = {}
        self._shown_groups: dict[int, str] = {}  # the group that was said to be ready, by device
        self._reconciling: dict[int, asyncio.Task[None]] = {}
        self._tasks = TaskSet()
        self._started_at = time.monotonic()

    # ------------------------------------------------------------------ how they are

    @property
    def is_serving(self) -> bool:
        """Whether some device serves, and no worker is lost."""
        devices = self.by_index.values()
        is_serving = any(device.shard is not None for device in devices)
        return is_serving and not any(device.worker.ended.is_set() for device in devices)

    @property
    def is_settled(self) -> bool:
        """Whether no device loads."""
        held = [device.shard_state for device in self.by_index.values()]
        return all(state is None or state.ready for state in held)

    @property
    def follows_sessions(self) -> bool:
        """Whether a session is open in a group in which a device of ours is a rank."""
        return any(device.follows_sessions for device in self.by_index.values())

    @property
    def gives_way(self) -> bool:
        """Whether a plan has another part for a device that serves."""
        return any(device.gives_way for device in self.by_index.values())

    @property
    def dropped_lately(self) -> bool:
        """Whether a plan made a device drop what was ready within the dwell time."""
        return any(device.dropped_lately for device in self.by_index.values())

    @property
    def troubles(self) -> list[Trouble]:
        """What keeps devices from their parts; a pause is none."""
        serving = (each for each in self.by_index.values() if each.presence is Presence.ON)
        return [trouble for each in serving if (trouble := each.trouble)]

    def facts(self) -> list[dict[str, Any]]:
        """What every device does now, in plain values."""
        return [{"index": index, "holds": device.words} for index, device in self.by_index.items()]

    def require(self, index: int) -> LocalDevice:
        """The device of this index; raises PeerRefused."""
        device = self.by_index.get(index)
        if device is None:
            raise PeerRefused("There is no such device here.")
        return device

    # ------------------------------------------------------------------ their duties

    def tend(self) -> None:
        """Let every device that is not at it already do what the plan asks of it, and say so."""
        for index, device in self.by_index.items():
            if index not in self._reconciling or self._reconciling[index].done():
                work = device.reconcile()
                self._reconciling[index] = self._tasks.create(f"tending device {index}", work)
            self._show_load(device)

    async def stop_tending(self) -> None:
        """Let go of what the devices are at."""
        await self._tasks.close()

    async def pause(self) -> None:
        """Give the memory of every device back."""
        await asyncio.gather(*(device.pause() for device in self.by_index.values()))

    def resume(self) -> None:
        """Let every device serve again."""
        for device in self.by_index.values():
            device.resume()

    # ------------------------------------------------------------------ what is said of them

    def show_parts(self, planner: str, term: int) -> None:
        """Say which parts a plan has for devices that do not hold them yet."""
        for device in self.by_index.values():
            part = self._plan_store.assignment_of(device.id)
            state = device.shard_state
            if part is not None and (state is None or state.assignment != part):
                self._status.assigned(part, planner, term)

    def _show_load(self, device: LocalDevice) -> None:
        state, shown = device.shard_state, self._shown_groups
        if device.presence is not Presence.ON:
            shown.pop(device.index, "")
        elif state is None:
            if shown.pop(device.index, ""):
                self._show_end(device)
            elif self._is_spare(device):
                self._status.spare(device.index, device.memory_bytes)
        elif not state.ready:
            if not device.weight_fetch.is_busy:
                self._status.show_progress(state.fraction)
        elif device.loaded and shown.get(device.index) != state.group:
            shown[device.index] = state.group
            self._status.show_progress(1.0)
            self._status.ready(state.assignment, device.loaded, device.fetched)

    def _show_end(self, device: LocalDevice) -> None:
        """Say why a shard is gone: it broke, or the plan has no part for it; else it moves on."""
        if device.failure:
            self._status.lost(device.index, device.failure)
        elif self._plan_store.assignment_of(device.id) is None:
            accepted = self._plan_store.accepted
            self._status.released(device.index, accepted.reason if accepted else "")

    def _is_spare(self, device: LocalDevice) -> bool:
        """Whether a plan that knows of this device has no part for it."""
        accepted = self._plan_store.accepted
        if accepted is None or accepted.reason:
            return False
        known = time.monotonic() - self._started_at > SPARE_SECONDS
        return known and self._plan_store.assignment_of(device.id) is None
