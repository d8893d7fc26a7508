"""Whatever a stranger sends to board, validator and channel: nothing but errors of ours leaves.

Each case has an ordinary number of examples and, in the slow suite, so many that rare ones come.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.dht.board import known_keys
from swarm.dht.dht_protocol import BUCKET_SIZE, ProtocolContext, SwarmProtocol, node_id_of
from swarm.dht.peer_networks import Networks, network_of
from swarm.dht.record_validator import SwarmValidator
from swarm.errors import RemoteProtocolError, SwarmError
from swarm.invites import HEAD, HEAD_2, Invite, _checksum, invite_text, peer_of_address
from swarm.p2p.frame_stream import frame_of
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2pd_process import Network
from swarm.p2p.rpc import RpcStatus
from swarm.records import KINDS
from swarm.testing.memory_network import peer_named
from swarm.trust.door import Door
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.network_clock import CLOCK
from swarm.trust.swarm_key import SwarmKey

ORDINARY, MANY = 70, 3000  # examples of each of seven cases: 490, and 21,000 in the slow suite
FOUNDER, STRANGER = Identity.throwaway(), peer_named("stranger")
SWARM = swarm_id("hostile", FOUNDER.peer)
KEYS = [DHTID.generate(name).to_bytes() for name, _ in known_keys(SWARM)]

SLOW = pytest.mark.slow
EXAMPLES = [ORDINARY, pytest.param(MANY, marks=SLOW)]


def search(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check so many examples of a strategy."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(strategy)
    def checked(example: Any) -> None:
        check(example)

    checked()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


# ---------------------------------------------------------------- what they may send

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
values = st.recursive(
    scalars | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
packed = values.map(msgpack.packb) | st.binary(max_size=200)
peer_ids = st.just(STRANGER) | st.just(FOUNDER.peer) | st.binary(max_size=80)
moments = st.floats() | st.floats(-10, 400).map(lambda ahead: time.time() + ahead)
node_ids = st.just(node_id_of(STRANGER).to_bytes()) | st.binary(max_size=24)
nodes = st.builds(dht_pb2.NodeInfo, node_id=node_ids)
keys = st.sampled_from(KEYS) | st.binary(max_size=24)


@st.composite
def signed_nonsense(draw: st.DrawFn) -> tuple[bytes, bytes, float]:
    """A key, a value that a stranger has signed, whatever it says, and its expiration."""
    identity = FOUNDER
    key, expiration = draw(keys), draw(moments)
    record = DHTRecord(key, msgpack.packb(identity.peer), draw(packed), expiration)
    return key, SwarmValidator(SWARM, identity).sign_value(record), expiration


@st.composite
def dictionaries(draw: st.DrawFn) -> bytes:
    """A whole dictionary of records as hivemind packs it, with anything in it."""
    dictionary = DictionaryDHTValue()
    with dictionary.freeze():
        for subkey, value in draw(st.lists(st.tuples(scalars, st.binary(max_size=90)), max_size=5)):
            dictionary.data[subkey] = SimpleNamespace(value=value, expiration_time=draw(moments))
    rows = [[subkey, each.value, each.expiration_time] for subkey, each in dictionary.data.items()]
    body = msgpack.packb([draw(scalars), draw(scalars), draw(st.just(rows) | values)])
    return bytes(msgpack.packb(msgpack.ExtType(0x50, body)))


@st.composite
def stores(draw: st.DrawFn) -> dht_pb2.StoreRequest:
    count = draw(st.integers(0, 4))
    rows = st.tuples(keys, packed | st.just(b""), packed | dictionaries(), moments)
    columns = [list(column) for column in zip(*draw(st.lists(rows, min_size=count)), strict=True)]
    if draw(st.booleans()):
        key, value, expiration = draw(signed_nonsense())
        columns = [[key], [msgpack.packb(FOUNDER.peer)], [value], [expiration]]
    names = ("keys", "subkeys", "values", "expiration_time")
    return dht_pb2.StoreRequest(
        **dict(zip(names, columns, strict=False)),
        in_cache=draw(st.lists(st.booleans(), max_size=4)),
        peer=draw(nodes),
    )


finds = st.builds(dht_pb2.FindRequest, keys=st.lists(keys, max_size=20), peer=nodes)
pings = st.builds(dht_pb2.PingRequest, peer=nodes, validate=st.booleans())
results = st.builds(
    dht_pb2.FindResult,
    type=st.sampled_from([0, 1, 2]),
    value=packed | dictionaries(),
    expiration_time=moments,
    nearest_node_ids=st.lists(node_ids, max_size=22),
    nearest_peer_ids=st.lists(st.binary(max_size=70), max_size=22),
)
answers = st.builds(dht_pb2.FindResponse, results=st.lists(results, max_size=3), peer=nodes)


# ---------------------------------------------------------------- the board


class OneAnswer:
    """A P2P of which every peer answers the same."""

    def __init__(self) -> None:
        self.peer_id = PeerID.from_base58(FOUNDER.peer)
        self.answer: Any = dht_pb2.FindResponse()

    async def call_protobuf_handler(self, *_: Any) -> Any:
        return self.answer


async def nobody() -> dict[str, tuple[str, ...]]:
    return {}


async def open_protocol() -> tuple[SwarmProtocol, OneAnswer]:
    p2p = OneAnswer()
    context = ProtocolContext(SwarmKey(SWARM), Networks(nobody), CLOCK, Door(FOUNDER.peer))
    validator = SwarmValidator(SWARM, FOUNDER)
    protocol = await SwarmProtocol.open(p2p, validator, context, client=True)
    protocol.wait_timeout = 1.0
    return protocol, p2p


def is_sound(protocol: SwarmProtocol) -> bool:
    """Whether only peers under their own id, and only known keys and peer ids, got in."""
    table = protocol.routing_table.uid_to_peer_id
    stored = {key.to_bytes() for key, _ in protocol.storage.items()}
    return all(uid == node_id_of(str(peer)) for uid, peer in table.items()) and stored <= set(KEYS)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_question_about_the_board_fails_or_gets_a_liar_in(
    examples: int, loop: asyncio.Runner
) -> None:
    protocol, _ = loop.run(open_protocol())
    protocol._calls.allows = lambda peer: True
    context: Any = SimpleNamespace(remote_id=PeerID.from_base58(STRANGER))
    handlers: dict[type[Any], Any] = {
        dht_pb2.PingRequest: protocol.rpc_ping,
        dht_pb2.FindRequest: protocol.rpc_find,
        dht_pb2.StoreRequest: protocol.rpc_store,
    }

    def check(request: Any) -> None:
        answer = loop.run(handlers[type(request)](request, context))
        answer.SerializeToString()
        assert is_sound(protocol)

    search(examples, st.one_of(pings, finds, stores()), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_answer_about_the_board_fails_or_gets_a_liar_in(
    examples: int, loop: asyncio.Runner
) -> None:
    protocol, p2p = loop.run(open_protocol())
    asked = [DHTID.from_bytes(key) for key in KEYS[:2]]

    def check(answer: Any) -> None:
        p2p.answer = answer
        found = loop.run(protocol.call_find(PeerID.from_base58(STRANGER), asked))
        for item, near in (found or {}).values():
            assert item is None or item.expiration_time < time.time() + 400
            assert len(near) <= BUCKET_SIZE
            assert all(uid == node_id_of(str(peer)) for uid, peer in near.items())
        assert is_sound(protocol)

    search(examples, answers, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_record_fails_the_validator(examples: int) -> None:
    judge = SwarmValidator(SWARM, FOUNDER)
    kinds = {DHTID.generate(name).to_bytes(): kind for name, kind in known_keys(SWARM)}

    def check(found: tuple[bytes, bytes, float]) -> None:
        key, value, expiration = found
        record = DHTRecord(key, msgpack.packb(FOUNDER.peer), value, expiration)
        if not judge.problem_of(record):
            assert kinds[key] in KINDS
            assert len(judge.strip_value(record)) < len(value)

    search(examples, signed_nonsense(), check)


def test_hivemind_reads_dictionaries_as_these_tests_pack_them() -> None:
    body = msgpack.packb([None, 1.0, [["peer", b"value", 1.0]]])
    read = MSGPackSerializer.loads(msgpack.packb(msgpack.ExtType(0x50, body)))
    assert isinstance(read, DictionaryDHTValue)


# ---------------------------------------------------------------- invites and addresses

letters = st.text(max_size=60) | st.from_regex(r"swarm[0-9]{1,9}:[A-Za-z0-9_=-]{0,40}")
addresses = st.text(max_size=60) | st.from_regex(r"(/(ip4|ip6|tcp|p2p|dns4|x)/[\w.:]{0,20}){1,5}")


def invite_around(content: Any) -> str:
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    return HEAD + base64.urlsafe_b64encode(data + _checksum(HEAD, data)).decode()


def second_invite_around(content: Any) -> str:
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    return HEAD_2 + base64.urlsafe_b64encode(data + _checksum(HEAD_2, data)).decode()


packed_peers = st.lists(
    st.lists(st.sampled_from([bytes(32), b"k" * 32]) | st.binary(max_size=40) | addresses | values)
    | values,
    max_size=5,
)
second_invites = st.tuples(
    *(packed_peers, st.text(), st.text(), st.text(), st.integers(-1, 3) | values),
    *(
        packed_peers,
        st.integers() | st.integers(-(2**63), 2**64 - 1) | values,
        st.binary() | values,
    ),
).map(lambda each: second_invite_around(each) if _packs(each) else "swarm2:")


def _packs(content: Any) -> bool:
    try:
        msgpack.packb(content)
    except (OverflowError, ValueError):
        return False
    return True


invites = (
    second_invites
    | letters
    | st.one_of(
        st.binary(max_size=60),
        values,
        st.lists(values, min_size=4, max_size=7),
        st.tuples(st.lists(addresses, max_size=40), st.text(), st.text(), st.text(), values),
    ).map(invite_around)
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_invite_ends_in_anything_but_a_sentence(examples: int) -> None:
    def check(text: str) -> None:
        with suppress(SwarmError):
            Invite.parse(text if text == "-" else invite_text(text)).encode()

    search(examples, invites, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_address_ends_in_anything_but_a_sentence(examples: int) -> None:
    def check(address: str) -> None:
        assert isinstance(network_of([address]), str)
        with suppress(SwarmError):
            assert peer_of_address(address)
            Network(initial_peers=(address,), relays=(address,))

    search(examples, addresses, check)


# ---------------------------------------------------------------- the channel


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_frame_ends_more_than_its_stream(examples: int, loop: asyncio.Runner) -> None:
    daemon: Any = SimpleNamespace(peer=FOUNDER.peer, door=Door(FOUNDER.peer))
    channel = LibP2PChannel(daemon, SWARM, "", 2.0)
    heard: list[Any] = []
    channel._on_message = lambda _peer, message: heard.append(message)
    tasks: Any = SimpleNamespace(create=lambda _name, coroutine: coroutine.close())
    channel._tasks = tasks
    kinds = ["OPEN", "STEP", "TOKEN", "FAIL", "CLOSE", "PING", "PONG", "MOVED", "else"]
    headers = packed | st.dictionaries(
        st.sampled_from(["type", "session", "epoch", "key", "tokens", "hops", "dtype"]),
        values | st.sampled_from(kinds),
    ).map(msgpack.packb)

    def check(frame: tuple[bytes, bytes]) -> None:
        stream: Any = SimpleNamespace(bad_frames=0, has_data=False, write_now=lambda _: True)
        header, body = frame
        channel._receive(STRANGER, stream, memoryview(header), memoryview(body))
        assert stream.bad_frames <= 1

    search(examples, st.tuples(headers, st.binary(max_size=64)), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_question_ends_in_anything_but_a_status(examples: int, loop: asyncio.Runner) -> None:
    daemon: Any = SimpleNamespace(peer=FOUNDER.peer, door=Door(FOUNDER.peer))
    rpc = LibP2PChannel(daemon, SWARM, "", 2.0)._rpc
    rpc._limits.has_room = lambda peer: True  # type: ignore[method-assign]
    rpc._limits.leave = lambda peer: None  # type: ignore[method-assign]
    rpc.answer("echo", echo)
    proof = bytes(32)
    texts = st.binary(max_size=80) | st.tuples(packed, packed).map(
        lambda parts: proof + b"".join(frame_of(*parts))
    )

    async def ask(text: bytes) -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(text)
        reader.feed_eof()
        writer: Any = SimpleNamespace(transport=SimpleNamespace(abort=lambda: None))
        try:
            status, _ = await rpc._status_and_answer(
                STRANGER, (reader, writer), proof, Door(FOUNDER.peer)
            )
            assert RpcStatus.decode(status.encode()) is not None
        except (RemoteProtocolError, asyncio.IncompleteReadError):
            pass  # what `serve` expects

    search(examples, texts, lambda text: loop.run(ask(text)))


async def echo(_peer: str, payload: bytes) -> bytes:
    return payload
