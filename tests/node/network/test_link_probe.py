"""Two peers measure the link between them, both at once, and disturb nobody."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest

from node.network.link_probe import (
    AHEAD_BYTES,
    NUMBER_BYTES,
    PEER_BURST_BYTES,
    READ_BYTES,
    TRANSFER_CAP,
    LinkMeasurement,
    LinkProbe,
    receive,
)
from node.network.machine_lock import MachineLock
from swarm.errors import PeerLost, PeerRefused, RemoteProtocolError
from swarm.p2p.frame_stream import frame_of, read_small_frame
from swarm.testing.memory_network import MemoryWorld, peer_named

ME, OTHER = peer_named("me"), peer_named("other")
DEADLINE_SECONDS = 20.0


@dataclass
class Side:
    """One peer that measures and lets itself be measured."""

    world: MemoryWorld
    name: str
    folder: Path
    machine: str = ""
    is_generating: bool = False
    looks: int = 0
    generates_at: int = 10**9  # so many looks at whether it generates later
    found: list[tuple[str, LinkMeasurement]] = field(default_factory=list)
    probe: LinkProbe = field(init=False)

    def __post_init__(self) -> None:
        machine = self.machine or self.name
        self.probe = LinkProbe(
            self.world.channel(self.name),
            machine,
            self._look,
            lambda peer, found: self.found.append((peer, found)),
            MachineLock(self.folder / machine),
        )

    def _look(self) -> bool:
        self.looks += 1
        return self.is_generating or self.looks >= self.generates_at


@dataclass
class Pair:
    """Two of them."""

    me: Side
    other: Side


def run(folder: Path, story: Callable[[Pair], Awaitable[None]], machine: str = "") -> None:
    async def whole() -> None:
        world = MemoryWorld()
        pair = Pair(Side(world, ME, folder, machine), Side(world, OTHER, folder, machine))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await story(pair)

    asyncio.run(whole())


async def answered(side: Side) -> tuple[str, LinkMeasurement]:
    while not side.found:  # noqa: ASYNC110 (nothing announces it)
        await asyncio.sleep(0.01)
    return side.found[-1]


@pytest.mark.parametrize("machine", ["", "one for both"])
def test_both_sides_learn_from_one_exchange(tmp_path: Path, machine: str) -> None:
    async def story(pair: Pair) -> None:
        mine = await pair.me.probe.measure(OTHER)
        peer, theirs = await answered(pair.other)
        assert peer == ME
        for found in (mine, theirs):
            assert 0 < found.round_trip_seconds < 0.1
            assert found.bytes_per_second > 1e6

    run(tmp_path, story, machine)


@pytest.mark.parametrize("who", ["me", "other"])
def test_nobody_measures_while_either_side_generates(tmp_path: Path, who: str) -> None:
    async def story(pair: Pair) -> None:
        getattr(pair, who).is_generating = True
        with pytest.raises(PeerRefused) as caught:
            await pair.me.probe.measure(OTHER)
        assert caught.value.retry_after_seconds > 0
        getattr(pair, who).is_generating = False
        await pair.me.probe.measure(OTHER)

    run(tmp_path, story)


@pytest.mark.parametrize("who", ["me", "other"])
def test_a_generation_that_begins_ends_a_measurement(tmp_path: Path, who: str) -> None:
    async def story(pair: Pair) -> None:
        getattr(pair, who).generates_at = 10
        with pytest.raises((PeerRefused, PeerLost)):
            await pair.me.probe.measure(OTHER)
        assert not pair.other.found
        assert getattr(pair, who).looks < 20  # and not at the end of what it would have sent

    run(tmp_path, story)


def test_one_measures_at_a_time_on_a_machine(tmp_path: Path) -> None:
    async def story(pair: Pair) -> None:
        beside = MachineLock(tmp_path / ME)  # another node of my machine
        with beside.held() as is_held:
            assert is_held
            with pytest.raises(PeerRefused):
                await pair.me.probe.measure(OTHER)
        with MachineLock(tmp_path / OTHER).held(), pytest.raises(PeerRefused):
            await pair.me.probe.measure(OTHER)
        await pair.me.probe.measure(OTHER)

    run(tmp_path, story)


def test_who_measures_each_other_at_once_is_put_off(tmp_path: Path) -> None:
    async def story(pair: Pair) -> None:
        both = (pair.me.probe.measure(OTHER), pair.other.probe.measure(ME))
        found = await asyncio.gather(*both, return_exceptions=True)
        assert all(isinstance(each, LinkMeasurement | PeerRefused) for each in found)
        assert any(isinstance(each, PeerRefused) for each in found)

    run(tmp_path, story)


def test_nobody_has_us_send_without_end(tmp_path: Path) -> None:
    """A stranger that grants all there is gets one transfer, and so many of them."""

    async def story(pair: Pair) -> None:
        for _ in range(PEER_BURST_BYTES // TRANSFER_CAP):
            reader, writer = await pair.me.probe._channel.open_stream(OTHER)
            writer.writelines(frame_of(msgpack.packb(["a machine"])))
            await read_small_frame(reader, 64, 0)
            for byte in (b"\0", b"\1"):
                writer.write(byte)
                await reader.readexactly(1)
            writer.write(b"\xff" * NUMBER_BYTES + bytes(NUMBER_BYTES))
            assert len(await reader.readexactly(TRANSFER_CAP + 1)) == TRANSFER_CAP + 1
            writer.close()
            await asyncio.sleep(0.05)
        with pytest.raises(PeerRefused):
            await pair.me.probe.measure(OTHER)

    run(tmp_path, story)


@pytest.mark.parametrize("hello", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({})])
def test_a_stranger_that_babbles_ends_its_own_stream(tmp_path: Path, hello: bytes) -> None:
    async def story(pair: Pair) -> None:
        reader, writer = await pair.me.probe._channel.open_stream(OTHER)
        writer.writelines(frame_of(hello))
        assert await reader.read() == b""
        writer.close()
        await pair.me.probe.measure(OTHER)  # and nobody else's turn

    run(tmp_path, story)


def test_who_sends_more_than_it_may_is_not_heard_out() -> None:
    async def story() -> None:
        reader = asyncio.StreamReader(limit=2 * TRANSFER_CAP)
        reader.feed_data(bytes(TRANSFER_CAP + 2 * READ_BYTES))
        stream = reader, Unheard()
        with pytest.raises(RemoteProtocolError, match="more than"):
            await receive(stream, 0.01, lambda: False)  # type: ignore[arg-type]

    asyncio.run(story())


def test_what_is_on_its_way_is_little_on_a_slow_link() -> None:
    """Of 5 Mbit/s at most what passes in a third of a second: the link is free again soon."""
    assert AHEAD_BYTES * 8 / 5e6 < 0.33


class Unheard:
    """A writer to nobody."""

    def write(self, data: bytes) -> None:
        """Take it."""
