"""A stranger with a seed: sends a swarm's peers whatever the transport carries, at a steady rate.

`python -m benchmarks.fuzzer INVITE SECONDS RATE SEED` prints what it sent, as JSON, and ends.
"""

import asyncio
import hashlib
import json
import os
import resource
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from time import monotonic
from typing import Any

import msgpack
import uvloop
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from swarm.dht.dht_board import DhtBoard
from swarm.errors import SwarmError
from swarm.invites import Invite
from swarm.network import hold_network
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.p2pd_process import Network
from swarm.records import Advert, Capability, Lease, PlanRef, Record, record_to_list
from swarm.trust.identity import Identity
from swarm.trust.network_clock import CLOCK
from swarm.wire.codec import Codec
from swarm.wire.messages import KINDS, Open, Step
from swarm.wire.token_ids import ids_to_bytes

SEND_SECONDS = 1.0
RENEW_SECONDS = 5.0  # between looks at who is there
STREAMS = 1  # silent ones: with two at a peer it takes no further stream of ours
KEY = b"k" * 16
QUESTIONS = (
    *("plan", "weights", "probe", "group", "alive", "news", "nobody", ""),
    *("certificate", "manifest"),
)
INTEGERS = (
    *(0, 1, 2, 3, 7, 255, 256, 257, 511, 512, 513, 4095, 4096, 65535, 65536),
    *(-1, -(2**31), -(2**63), 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62 - 1, 2**62, 2**64 - 1),
)
FLOATS = (0.0, -0.0, 1e-300, 1e300, -1.0, float("nan"), float("inf"), 1e12, 0.5)
TEXTS = ("", "a", "\ud800", "\x1b[2J\x1b]52;c;AAAA\x07", "[/]", "[link=x]y", "\u202e", "x" * 300)
DTYPES = ("i32", "f32", "f16", "bf16", "i8", "", "f64")


class Stranger:
    """One identity without any right, and what it says to every peer that it finds."""

    def __init__(self, daemon: P2PDaemon, board: DhtBoard, channel: Any, seed: int) -> None:
        self._daemon = daemon
        self._board = board
        self._channel = channel
        self._draw = Random(seed)
        self._codec = Codec()
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._opening = defaultdict[str, asyncio.Lock](asyncio.Lock)
        self._silent: list[asyncio.StreamWriter] = []
        self._adverts: dict[str, Advert] = {}
        self._capabilities: dict[str, Capability] = {}
        self._model = ""
        self._document: dict[str, Any] | None = None  # the honest planner's
        self._documents: dict[str, bytes] = {}  # ours, by digest
        self.sent = Counter[str]()
        channel.listen(lambda peer, message: None, lambda peer, reason: None)
        channel.answer("plan", self._hand_out)

    @property
    def peers(self) -> list[str]:
        """Everybody but us."""
        return sorted({*self._adverts, *self._capabilities} - {self._daemon.peer})

    async def look(self) -> None:
        """Learn who is there: a stranger of an open swarm may read all records."""
        with suppress(SwarmError):
            self._adverts = await self._board.read(Advert)
            self._capabilities = await self._board.read(Capability)
            await self._read_document()
        for advert in self._adverts.values():
            self._model = advert.model

    async def _read_document(self) -> None:
        for holder, reference in (await self._board.read(PlanRef)).items():
            if holder != self._daemon.peer:
                data = await self._channel.ask(holder, "plan", reference.digest.encode())
                self._document = json.loads(data)

    async def act(self) -> None:
        """Send one message of a kind drawn by lot."""
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._noise: 1,
            self._mutated_frame: 18,
            self._session: 18,
            self._question: 9,
            self._record: 8,
            self._lease_and_plan: 2,
            self._credible_plan: 2,
            self._brimful: 9,
            self._silent_stream: 1,
        }
        act = self._draw.choices(list(kinds), list(kinds.values()))[0]
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await act()
                self.sent[act.__name__.strip("_")] += 1
        except (SwarmError, OSError, EOFError, ValueError, TimeoutError) as error:
            what = act.__name__.strip("_")
            self.sent[f"not taken: {type(error).__name__}, {what}"] += 1

    # ------------------------------------------------------------------ frames

    async def _noise(self) -> None:
        peer = self._peer()
        await self._write(peer, [self._draw.randbytes(self._draw.choice((1, 90, 5000)))])
        self._writers.pop(peer).close()

    async def _mutated_frame(self) -> None:
        kind = self._draw.choice(list(KINDS))
        values = {"type": kind} | {name: self._value() for name in _names_of(kind)}
        values |= {"session": "s", "epoch": 1, "key": KEY} if self._draw.random() < 0.7 else {}
        for name in self._draw.sample(sorted(values), self._draw.randrange(3)):
            values[name] = self._value()
        await self._write(self._peer(), _frame(values, self._body()))

    async def _session(self) -> None:
        """A session in good form, then steps that are not."""
        routes = self._route()
        if not routes:
            return
        stage = self._draw.randrange(len(routes))
        leader, session = routes[stage][0], self._draw.choice("abcdefgh") * 8
        rows = [list(hop) for hop in routes]
        body = ids_to_bytes([self._draw.randrange(200) for _ in range(self._draw.choice((1, 40)))])
        epoch = self._draw.choice((1, 2, 3, 2**31))
        sampling = {self._draw.choice(("temperature", "top_p", "stop", "seed", "x")): self._value()}
        capacity = self._draw.choice((64, 300, 2048, 1 << 20))
        opened = Open(session, epoch, KEY, stage, rows, self._model, capacity, body=body)
        if self._draw.random() < 0.3:
            opened.sampling = sampling
        if self._draw.random() < 0.2:
            opened.generated = self._draw.choice((1, 40, 4000))
        await self._send(leader, opened)
        step = Step(session, epoch, KEY, stage, 0, 1, True, self._draw.choice(DTYPES))
        step.body = self._body()
        step.hops = [[1, 2, 3]] * self._draw.choice((0, 0, 1, 512))
        step.rewinds = self._draw.choice((0, 0, 2**31, 2**62 - 1))
        step.drafts = [5] * self._draw.choice((0, 0, 1, 255))
        step.tokens = self._draw.choice((1, 1, 2, 256, 257)) + len(step.drafts)
        step.position = self._draw.choice((0, 0, 1, 2047, 2048, 2**40))
        await self._send(leader, step)

    async def _brimful(self) -> None:
        """What a node makes of it is larger than what may travel: routes, keys, counts."""
        leader, start, end = self._draw.choice(self._route() or [["", 0, 1]])
        me, session = self._daemon.peer, f"brim{self._draw.randrange(9)}"
        before = [[me, at, at + 1] for at in range(start)]
        more = 0 if self._draw.random() < 0.5 else 512 - len(before) - 1
        after = [[me, end + at, end + at + 1] for at in range(more)]
        route = [*before, [leader, start, end], *after]
        key = KEY if self._draw.random() < 0.6 else b"k" * self._draw.choice((0, 17, 60_000))
        opened = Open(session, 1, key, len(before), route, self._model, 64, body=ids_to_bytes([5]))
        await self._send(leader, opened)
        step = Step(session, 1, key, len(before), 0, 1, True, "i32", body=ids_to_bytes([5]))
        step.hops = [[1, 2, 3]] * self._draw.choice((len(before), 512))
        if self._draw.random() < 0.5:
            step.rewinds, step.drafts, step.tokens = 2**62 - 1, [7], 2
            step.body = ids_to_bytes([5, 7])
        await self._send(leader, step)

    async def _send(self, peer: str, message: Any) -> None:
        await self._write(peer, self._codec.encode(message))

    async def _write(self, peer: str, buffers: list[Any]) -> None:
        async with self._opening[peer]:  # a second stream would end the first one
            writer = self._writers.get(peer)
            if writer is None or writer.is_closing():
                _, writer = await self._daemon.open_stream(peer, self._channel._frames)
                writer.write(self._channel._proof(self._daemon.peer, peer))
                self._writers[peer] = writer
        try:
            writer.writelines(buffers)
            await writer.drain()
        except OSError:  # the peer has had enough of this stream: the next one is a new one
            self._writers.pop(peer, None)
            writer.close()
            raise

    async def _silent_stream(self) -> None:
        if len(self._silent) >= STREAMS:
            self._silent.pop(0).close()
        _, writer = await self._daemon.open_stream(self._peer(), self._channel._frames)
        self._silent.append(writer)

    # ------------------------------------------------------------------ questions, records

    async def _question(self) -> None:
        name = self._draw.choice(QUESTIONS)
        payload = self._draw.choice(
            (
                b"",
                self._draw.randbytes(300),
                struct.pack("!Q", self._draw.choice((1, 1 << 20, 1 << 40))),
                msgpack.packb(self._plain(3)),
                b"\x81" * 2000,
            )
        )
        await self._channel.ask(self._peer(), name, payload, timeout_seconds=SEND_SECONDS)

    async def _record(self) -> None:
        kind = self._draw.choice((Capability, Advert, Lease, PlanRef))
        honest = self._draw.choice(list(self._adverts.values()) or [None])
        values = self._values_of(kind, honest)
        await self._store(kind, values)

    async def _lease_and_plan(self) -> None:
        term = self._draw.choice((1, 2, 60, 1000, 2**31, 2**63, 2**64 - 1))
        await self._store(Lease, [term, CLOCK.now() + 15])
        await self._store(PlanRef, [term, 0, self._draw.choice(("0" * 64, "x")), 300])

    async def _credible_plan(self) -> None:
        """A capability in good form, a lease of the next term, and a plan that fits both."""
        if self._document is None or not self._capabilities:
            return
        changed = self._document | {"planner": self._daemon.peer}
        changed["term"] = int(changed["term"]) + self._draw.choice((1, 2, 64, 65, 1000))
        if self._draw.random() < 0.5:
            changed["reason"] = self._draw.choice(TEXTS)
        if self._draw.random() < 0.5:
            text = json.dumps(changed["plan"]).replace(self._peer(), self._daemon.peer)
            changed["plan"] = json.loads(text)
        data = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._documents[digest] = data
        like = self._draw.choice(list(self._capabilities.values()))
        await self._store(Capability, record_to_list(like))
        await self._store(Lease, [changed["term"], CLOCK.now() + 15])
        await self._store(PlanRef, [changed["term"], 0, digest, len(data)])

    async def _store(self, kind: type[Record], values: list[Any]) -> None:
        """Hand a signed record to one peer, whatever it says."""
        name = f"{self._board._swarm}/{kind.KEY}"
        expiration = CLOCK.now() + self._draw.choice((1.0, kind.TTL_SECONDS, 4000.0))
        for each in self.peers:
            await self._store_at(PeerID.from_base58(each), name, values, expiration)

    async def _store_at(self, peer: Any, name: str, values: list[Any], expiration: float) -> None:
        validator = self._board._validator
        signed = validator.signed_record(name, self._daemon.peer, values, expiration)
        protocol = self._board._node.protocol
        taken = await protocol.call_store(
            peer,
            [DHTID.from_bytes(signed.key)],
            [signed.value],
            expiration,
            subkeys=[self._daemon.peer],
        )
        self.sent["records taken"] += any(taken or [])

    def _values_of(self, kind: type[Record], honest: Advert | None) -> list[Any]:
        device = [0, "cpu", self._text(), self._number(), self._number(), self._number()]
        member = [self._daemon.peer, 0, self._number(), self._number()]
        stage = [0, self._draw.choice((1, 4, 8)), [member], *(self._number() for _ in range(3))]
        model = honest.model if honest else "m"
        words: list[Any] = {
            Capability: [model, [device], [], self._text(), True, self._number(), self._text()],
            Advert: [model, [stage] * self._draw.choice((1, 3, 60)), self._number()],
            Lease: [self._number(), self._number()],
            PlanRef: [self._number(), self._number(), self._text(), self._number()],
        }[kind]
        if self._draw.random() < 0.3:
            words[self._draw.randrange(len(words))] = self._value()
        return [*words, self._plain(2)] if self._draw.random() < 0.1 else words

    async def _hand_out(self, _peer: str, payload: bytes) -> bytes:
        """A plan as a stranger would have it."""
        if known := self._documents.get(payload.decode(errors="replace")):
            return known
        plan = {"pipelines": self._plain(3)} if self._draw.random() < 0.5 else self._plain(4)
        words = {name: self._text() for name in ("planner", "model", "objective", "reason")}
        document = {"plan": plan, "term": self._number(), **words}
        return json.dumps(document, default=str).encode()

    # ------------------------------------------------------------------ values

    def _peer(self) -> str:
        peers = self.peers
        if not peers:
            raise ValueError("nobody is there")
        return self._draw.choice(peers)

    def _route(self) -> list[list[Any]]:
        stages = sorted(
            [leader, stage.start, stage.end]
            for leader, advert in self._adverts.items()
            for stage in advert.stages
            if leader != self._daemon.peer
        )
        return sorted(stages, key=lambda hop: int(hop[1]))

    def _body(self) -> bytes:
        return self._draw.randbytes(self._draw.choice((0, 1, 4, 8, 256, 1024, 20_000)))

    def _number(self) -> Any:
        number: Any = self._draw.choice((*INTEGERS[:10], *INTEGERS, *FLOATS))
        return max(-(2**63), number) if isinstance(number, int) else number

    def _text(self) -> str:
        # msgpack and JSON carry lone surrogates only if asked to; records cannot
        return self._draw.choice(TEXTS).encode(errors="replace").decode()

    def _value(self) -> Any:
        return self._draw.choice(
            (self._number(), self._text(), True, None, b"\xff" * 9, self._plain(2))
        )

    def _plain(self, depth: int) -> Any:
        if depth == 0 or self._draw.random() < 0.3:
            return self._draw.choice((self._number(), self._text(), None, True))
        items = [self._plain(depth - 1) for _ in range(self._draw.randrange(4))]
        return items if self._draw.random() < 0.5 else {self._text(): each for each in items}


def _names_of(kind: str) -> list[str]:
    hidden = {"body"}
    return [name for name in KINDS[kind].__dataclass_fields__ if name not in hidden]


def _frame(values: dict[str, Any], body: bytes) -> list[bytes]:
    header = msgpack.packb(values, default=str)
    return [struct.pack("!IQ", len(header), len(body)), header, body]


async def be_strange(invite: Invite, seconds: float, rate: float, seed: int) -> dict[str, Any]:
    """Send for so long at `rate` messages a second; returns what was sent."""
    identity = Identity.throwaway()
    network = Network(host="127.0.0.1", initial_peers=invite.addresses)
    async with hold_network(identity, network, invite.swarm, invite.key) as held:
        stranger = Stranger(held.daemon, held.board, held.channel, seed)
        await _keep_at_it(stranger, seconds, rate)
    own, daemon = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    spent = sum(each.ru_utime + each.ru_stime for each in (own, daemon))
    return {"sent": dict(stranger.sent), "cpu_seconds": spent}


async def _keep_at_it(stranger: Stranger, seconds: float, rate: float) -> None:
    start = monotonic()
    looked_at, count = -RENEW_SECONDS, 0
    acts: set[asyncio.Task[None]] = set()
    while (now := monotonic() - start) < seconds:
        if now - looked_at > RENEW_SECONDS:
            looked_at = now
            await stranger.look()
        while count < now * rate and len(acts) < rate:
            task = asyncio.create_task(stranger.act())
            acts.add(task)
            task.add_done_callback(acts.discard)
            count += 1
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*acts, return_exceptions=True)


if __name__ == "__main__":
    line, duration, per_second, number = sys.argv[1:]
    told = be_strange(Invite.parse(line), float(duration), float(per_second), int(number))
    print(json.dumps(uvloop.run(told)), flush=True)
    os._exit(0)  # nothing is left to be said; p2pd has ended
