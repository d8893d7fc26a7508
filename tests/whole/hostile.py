"""A hostile client: noise on the streams, and every message that a stage must not trust."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from swarm.errors import PeerError
from swarm.p2p.channel import Channel
from swarm.wire.messages import Cancel, Close, Message, Open, Step, Token
from swarm.wire.token_ids import ids_to_bytes
from tests.whole.conftest import SPEC

KEY = b"k" * 16
QUESTIONS = ("group", "plan", "probe", "news", "alive", "nobody")
Hops = Sequence[list[Any]]


async def be_hostile(channel: Channel, hops: Hops) -> None:
    """Do to every leader of a route what a bad client can do."""
    draw = Random(4)
    for stage, (peer, _, _) in enumerate(hops):
        for proven in (True, False):
            await make_noise(channel, peer, draw.randbytes(20_000), proven=proven)
        for message in bad_messages(stage, hops):
            with suppress(PeerError):
                await channel.send(peer, message, timeout_seconds=3)
        for name in QUESTIONS:
            with suppress(PeerError):
                await channel.ask(peer, name, draw.randbytes(300))


async def make_noise(channel: Any, peer: str, noise: bytes, *, proven: bool) -> None:
    """Write bytes that are no frames, with or without the proof of a member before them."""
    with suppress(PeerError, ConnectionError):
        _, writer = await channel._daemon.open_stream(peer, channel._frames)
        if proven:
            writer.write(channel._proof(channel.peer, peer))
        writer.write(noise)
        await writer.drain()
        writer.close()


def bad_messages(stage: int, hops: Hops) -> Iterator[Message]:
    """Messages of the right form that no stage may believe."""
    route = [list(hop) for hop in hops]
    opened = Open("bad", 1, KEY, stage, route, SPEC.digest, 64, body=ids_to_bytes([5, 9, 33]))
    nan = b"\x00\x00\xc0\x7f" * SPEC.hidden
    step = Step("bad", 1, KEY, stage, 0, 1, True, "f32", body=nan)
    yield Step("unknown", 1, KEY, stage, 0, 1, True, "i32", body=bytes(4))
    yield replace(opened, route=[["nobody", 0, 8]])
    yield replace(opened, route=route[::-1])
    yield replace(opened, stage=9)
    yield replace(opened, capacity=1 << 50)
    yield replace(opened, model="other")
    yield replace(opened, body=b"abc")
    yield replace(opened, epoch=2, sampling={"temperature": "hot"})
    yield replace(opened, epoch=3, generated=99)
    hot = {"temperature": 1e-42, "repetition_penalty": 1e-44, "seed": 1}
    yield replace(opened, epoch=4, sampling=hot, body=ids_to_bytes([-1, 1 << 30]))
    yield replace(step, epoch=4)
    yield replace(opened, epoch=5, sampling={"temperature": 1.0, "seed": 1})
    yield replace(step, epoch=5, tokens=7)
    yield replace(step, epoch=5)
    yield replace(step, epoch=5, position=60)
    yield replace(step, epoch=5, dtype="i32", body=b"\xff" * 4)
    yield replace(step, epoch=5, dtype="f16", body=bytes(3))
    yield Token("bad", 5, KEY, 0, [1])
    yield Close("bad", 5, b"other")
    yield Cancel("bad", 6, KEY)
