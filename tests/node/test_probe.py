"""What a machine offers and how far others are: detected, declared and measured in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import psutil
import pytest

from node.probe import (
    LARGE_BYTES,
    NEIGHBOURS,
    PROBE_BURST_BYTES,
    answer_probes,
    detect,
    machine_id,
    measure_link,
    measure_links,
    memory_words,
)
from swarm.errors import BadInput, PeerRefused
from swarm.hardware import Device
from swarm.testing.memory_network import MemoryChannel, MemoryWorld, peer_named

ME, OTHER = peer_named("me"), peer_named("other")


def run(story: Callable[[MemoryWorld, MemoryChannel], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = MemoryWorld()
        answer_probes(world.channel(OTHER))
        async with asyncio.timeout(5):
            await story(world, world.channel(ME))

    asyncio.run(whole())


def test_a_machine_offers_at_least_its_cpu_within_its_memory() -> None:
    devices = detect(0)
    assert [device.index for device in devices] == list(range(len(devices)))
    for device in devices:
        assert device.memory_bytes > 0
        if device.kind == "cpu":
            assert device.memory_bytes < psutil.virtual_memory().total


def test_a_declared_limit_is_never_exceeded_and_never_more_than_there_is() -> None:
    assert [device.memory_bytes for device in detect(1000)] == [1000] * len(detect(0))
    most = max(device.total_bytes for device in detect())
    for device in detect(most):
        assert device.memory_bytes <= device.free_bytes
    with pytest.raises(BadInput, match=r"--memory .* is more than this machine's .*B\."):
        detect(most + 10**12)


def test_a_share_of_memory_is_one_of_what_is_free() -> None:
    for half, whole in zip(detect(share=0.5), detect(share=1.0), strict=True):
        assert half.memory_bytes == pytest.approx(whole.memory_bytes / 2, rel=0.1)


def test_the_offer_says_why_it_is_as_large_as_it_is() -> None:
    cpu = Device(0, "cpu", "CPU", 10 * 10**9, 1.0, 1.0)
    assert memory_words(cpu, 0, 0.0) == "80% of what is free"
    assert memory_words(replace(cpu, kind="cuda"), 0, 0.0) == "92% of what is free"
    assert memory_words(cpu, 0, 0.5) == "50% of what is free"
    assert memory_words(cpu, 10 * 10**9, 0.0) == ""
    assert memory_words(cpu, 12 * 10**9, 0.0) == "80% of what is free, not 12 GB"


def test_a_machine_has_one_id_that_says_nothing_about_it() -> None:
    assert machine_id() == machine_id()
    assert len(machine_id()) == 12


def test_a_slow_link_is_measured_as_slow() -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        near = await measure_link(channel, OTHER)
        world.link(ME, OTHER).delay_seconds = 0.01
        far = await measure_link(channel, OTHER)
        assert near is not None
        assert far is not None
        assert near.peer == OTHER
        assert near.round_trip_seconds < 0.01 < 0.02 <= far.round_trip_seconds < 0.2
        assert far.bytes_per_second > 0

    run(story)


def test_a_peer_that_does_not_answer_has_no_link() -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        silent = world.channel(peer_named("silent"))
        assert await measure_link(channel, silent.peer) is None
        world.cut(ME, OTHER)
        assert await measure_link(channel, OTHER) is None

    run(story)


def test_so_many_neighbours_are_measured_and_the_silent_ones_left_out() -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        peers = [peer_named(f"peer {number}") for number in range(NEIGHBOURS + 3)]
        for peer in peers:
            answer_probes(world.channel(peer))
        world.kill(peers[0])
        links = await measure_links(channel, peers)
        assert [link.peer for link in links] == peers[1:NEIGHBOURS]

    run(story)


@pytest.mark.parametrize("question", [b"", b"\xff" * 8, b"\xff" * 4000, bytes(8)])
def test_a_stranger_gets_at_most_a_megabyte_back(question: bytes) -> None:
    async def story(world: MemoryWorld, channel: MemoryChannel) -> None:
        answer = await channel.ask(OTHER, "probe", question)
        assert len(answer) <= LARGE_BYTES

    run(story)


def test_nobody_has_us_send_without_end() -> None:
    async def story(_world: MemoryWorld, channel: MemoryChannel) -> None:
        question = LARGE_BYTES.to_bytes(8, "big")
        for _ in range(PROBE_BURST_BYTES // LARGE_BYTES):
            assert len(await channel.ask(OTHER, "probe", question)) == LARGE_BYTES
        with pytest.raises(PeerRefused, match="measure too much"):
            await asyncio.gather(*(channel.ask(OTHER, "probe", question) for _ in range(3)))

    run(story)
