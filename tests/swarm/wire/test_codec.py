"""Frames and messages: whatever arrives, the worst that happens is RemoteProtocolError."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.wire.codec import Codec, Decoder, session_of
from swarm.wire.framing import BODY_CAP, HEADER_CAP, PREFIX
from swarm.wire.messages import (
    KINDS,
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Ping,
    Pong,
    Step,
    Token,
)

SESSION: dict[str, Any] = {"session": "a" * 32, "epoch": 1, "key": b"k" * 16}
MESSAGES: list[Message] = [
    Open(
        **SESSION,
        stage=0,
        route=[["peer", 0, 4], ["other", 4, 8]],
        model="digest",
        capacity=9,
        generated=2,
        sampling={"temperature": 0.5, "stop": ["."]},
        body=b"\1\0\0\0",
    ),
    Opened(**SESSION, stage=1),
    Busy(**SESSION, stage=1, retry_after_seconds=0.5, reason="full"),
    Step(**SESSION, stage=1, position=7, tokens=2, sample=True, dtype="f32", body=b"rows"),
    Step(**SESSION, stage=0, position=7, tokens=2, sample=True, dtype="i32", drafts=[5], rewinds=3),
    Token(**SESSION, position=8, ids=[5, 6], finish="stop", hops=[[1, 2, 3]], drafted=4),
    Fail("a" * 32, 1, "internal", "why", "peer"),
    Cancel(**SESSION),
    Close(**SESSION),
    Moved("a" * 32, 1),
    Ping(3),
    Pong(3),
]
codec = Codec()


def frame_of(message: Message) -> bytes:
    return b"".join(codec.encode(message))


def header_of(**values: Any) -> bytes:
    data: bytes = msgpack.packb(values)
    return data


def test_every_kind_of_message_is_covered_here() -> None:
    assert {type(message) for message in MESSAGES} == set(KINDS.values())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert list(Decoder(codec).feed(frame_of(message))) == [message]


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.lists(st.integers(1, 97), min_size=1))
def test_messages_survive_any_cutting_of_the_stream(
    messages: list[Message], cuts: list[int]
) -> None:
    stream = b"".join(map(frame_of, messages))
    decoder, at = Decoder(codec), 0
    found: list[Message] = []
    while at < len(stream):
        size = cuts[len(found) % len(cuts)]
        found += list(decoder.feed(stream[at : at + size]))
        at += size
    assert found == messages


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        list(Decoder(codec).feed(data))


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_an_arbitrary_header_raises_nothing_but_a_protocol_error(
    header: bytes, body: bytes
) -> None:
    session_of(header)
    with pytest.raises(RemoteProtocolError):
        codec.decode(header, body)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_field_of_any_value_gives_a_message_that_travels_on_or_a_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    values = msgpack.unpackb(codec.encode(message)[0][PREFIX.size :])
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(plain)
    header = header_of(**values)
    session_of(header)
    try:
        found = codec.decode(header, b"")
    except RemoteProtocolError:
        return
    again = codec.decode(codec.encode(found)[0][PREFIX.size :], b"")
    assert frame_of(again) == frame_of(found)


@pytest.mark.parametrize("sizes", [(HEADER_CAP + 1, 0), (1, BODY_CAP + 1), (2**32 - 1, 2**64 - 1)])
def test_a_frame_above_the_caps_is_refused_by_its_first_twelve_bytes(
    sizes: tuple[int, int],
) -> None:
    with pytest.raises(RemoteProtocolError, match="caps"):
        list(Decoder(codec).feed(PREFIX.pack(*sizes)))


def test_a_promised_body_is_not_allocated_before_it_comes() -> None:
    decoder = Decoder(codec)
    assert list(decoder.feed(PREFIX.pack(10, BODY_CAP))) == []
    assert len(decoder._frames._data) < 2 * PREFIX.size


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"type": "NONSENSE"}, "Unknown message type"),
        ({"type": ["STEP"]}, "Unknown message type"),
        ({"surprise": 1}, "surprise"),
        ({"position": -1}, "position"),
        ({"position": True}, "position"),
        ({"position": 2.0}, "position"),
        ({"sample": 1}, "sample"),
        ({"session": "a" * 65}, "session"),
        ({"key": "text"}, "key"),
        ({"hops": [["late"]]}, "hops"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], cause: str) -> None:
    values = msgpack.unpackb(codec.encode(MESSAGES[3])[0][PREFIX.size :]) | changes
    with pytest.raises(RemoteProtocolError, match=cause):
        codec.decode(header_of(**values), b"")


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="lacks"):
        codec.decode(header_of(type="STEP", **SESSION), b"")


def test_a_bad_frame_leaves_the_next_one_readable() -> None:
    bad = header_of(type="NONSENSE")
    stream = PREFIX.pack(len(bad), 0) + bad + frame_of(Ping(1))
    decoder = Decoder(codec)
    with pytest.raises(RemoteProtocolError):
        list(decoder.feed(stream))
    assert list(decoder.feed(b"")) == [Ping(1)]


@pytest.mark.parametrize(
    "message",
    [
        Fail("a" * 65, 1, "internal"),
        Fail("a", 1, "internal", "r" * 3000),
        Token(**SESSION, position=0, ids=[-1]),
        Open(**SESSION, stage=0, route=[], model="d", capacity=1, sampling={"a": object()}),
        Open(**SESSION, stage=0, route=[["p" * 70_000]], model="d", capacity=1),
    ],
)
def test_our_own_malformed_message_is_our_own_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(message)
    assert list(Decoder(codec).feed(frame_of(Ping(1)))) == [Ping(1)]  # nothing is left of it


def test_a_codec_carries_only_its_own_kinds() -> None:
    with pytest.raises(LocalProtocolError):
        Codec({"PING": Ping}).encode(Pong(1))
    with pytest.raises(RemoteProtocolError):
        Codec({"PING": Ping}).decode(codec.encode(Pong(1))[0][PREFIX.size :], b"")


def test_the_session_of_a_bad_frame_is_known_unless_it_is_a_fail() -> None:
    assert session_of(header_of(type="STEP", session="s", epoch=4, odd=1)) == ("s", 4)
    assert session_of(header_of(type="FAIL", session="s", epoch=4)) is None
    assert session_of(header_of(type="STEP", session="s", epoch=-4)) is None
    assert session_of(header_of(type="STEP", session="s", epoch=True)) is None
    assert session_of(b"\xc1") is None


def test_the_secret_of_a_session_is_never_shown() -> None:
    assert "kkk" not in repr(MESSAGES[3])
