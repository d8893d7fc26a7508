"""Links are measured, corrected and told of; peers of the version before are asked their way."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from node.network.link_estimates import LinkEstimates
from node.network.link_monitor import LinkMonitor
from node.network.link_probe import LinkProbe
from node.network.link_questions import (
    BURST_BYTES,
    LARGE_BYTES,
    answer_link_questions,
    measure_by_questions,
)
from node.network.machine_lock import MachineLock
from swarm.errors import PeerLost, PeerRefused
from swarm.hardware import Link
from swarm.testing.memory_network import MemoryChannel, MemoryWorld, peer_named

ME, OTHER = sorted([peer_named("me"), peer_named("other")])
DEADLINE_SECONDS = 20.0


def run(story: Callable[[MemoryWorld, MemoryChannel], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = MemoryWorld()
        answer_link_questions(world.channel(OTHER))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await story(world, world.channel(ME))

    asyncio.run(whole())


def probe_of(channel: MemoryChannel, folder: Path, estimates: LinkEstimates) -> LinkProbe:
    lock = MachineLock(folder / channel.peer)
    return LinkProbe(channel, channel.peer, lambda: False, estimates.note_measurement, lock)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_newcomer_is_measured_and_told_of(tmp_path: Path, is_old: bool) -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        mine, theirs = LinkEstimates(), LinkEstimates()
        if not is_old:
            probe_of(world.channels[OTHER], tmp_path, theirs)
        told: asyncio.Queue[list[Link]] = asyncio.Queue()
        probe = probe_of(channel, tmp_path, mine)
        monitor = LinkMonitor(channel, probe, mine, lambda: {ME, OTHER})
        running = asyncio.create_task(monitor.run(told.put_nowait))
        (link,) = await told.get()
        assert link.peer == OTHER
        assert link.bytes_per_second > 1e6
        running.cancel()

    run(story)


def test_a_far_peer_of_the_version_before_is_measured_as_far() -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        near = await measure_by_questions(channel, OTHER)
        world.link(ME, OTHER).delay_seconds = 0.01
        far = await measure_by_questions(channel, OTHER)
        assert near.round_trip_seconds < 0.01 < 0.02 <= far.round_trip_seconds < 0.2
        assert far.bytes_per_second > 0

    run(story)


def test_a_peer_that_does_not_answer_has_no_link() -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        silent = world.channel(peer_named("silent"))
        with pytest.raises(PeerRefused):
            await measure_by_questions(channel, silent.peer)
        world.cut(ME, OTHER)
        with pytest.raises(PeerLost):
            await measure_by_questions(channel, OTHER)

    run(story)


@pytest.mark.parametrize("question", [b"", b"\xff" * 8, b"\xff" * 4000, bytes(8)])
def test_a_stranger_gets_at_most_a_megabyte_back(question: bytes) -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        answer = await channel.ask(OTHER, "probe", question)
        assert len(answer) <= LARGE_BYTES

    run(story)


def test_nobody_has_us_answer_without_end() -> None:
    async def story(_world: MemoryWorld, channel: MemoryChannel) -> None:
        question = LARGE_BYTES.to_bytes(8, "big")
        for _ in range(BURST_BYTES // LARGE_BYTES):
            assert len(await channel.ask(OTHER, "probe", question)) == LARGE_BYTES
        with pytest.raises(PeerRefused, match="measure too much"):
            await asyncio.gather(*(channel.ask(OTHER, "probe", question) for _ in range(3)))

    run(story)


def test_large_frames_correct_what_a_node_tells_of_a_link(tmp_path: Path) -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        theirs = LinkEstimates()
        probe_of(world.channels[OTHER], tmp_path, theirs)
        told: asyncio.Queue[list[Link]] = asyncio.Queue()
        machine = str(tmp_path)[-12:].replace("/", "-")
        monitor = LinkMonitor.of_node(channel, machine, lambda: False, lambda: {ME, OTHER})
        running = asyncio.create_task(monitor.run(told.put_nowait))
        (measured,) = await told.get()
        for _ in range(30):
            channel.on_rate(OTHER, 1e3)
        (corrected,) = await told.get()
        assert corrected.bytes_per_second < measured.bytes_per_second / 100
        running.cancel()

    run(story)
