"""Dial-back: a peer asks others whether they can open a connection to it, and they try.

Only where the asker itself is seen is dialed, at ports that it names, so that nobody can send our
connections to somebody else's address.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgpack

from swarm.errors import PeerRefused, RemoteProtocolError
from swarm.p2p.addresses import CIRCUIT, is_private, tcp_multiaddr
from swarm.p2p.channel import Channel
from swarm.p2p.rate_limit import Budget

QUESTION = "dialback"
ASK_SECONDS = 12.0  # the answerer's own deadlines are shorter
PORTS_CAP, HOSTS_CAP = 3, 2  # dialed for one question
OF_ONE_PER_SECOND, OF_ONE_BURST = 1 / 30, 6  # questions
OF_ALL_PER_SECOND, OF_ALL_BURST = 1.0, 20
RETRY_SECONDS = 30.0

Connected = Callable[[], Awaitable[Mapping[str, Sequence[str]]]]  # multiaddrs in use, by peer
IsPeerAt = Callable[[str, int, str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one peer found when it dialed us."""

    seen: tuple[str, ...]  # IP addresses from which we are connected to it, none if by a relay
    reached: tuple[str, ...]  # multiaddrs without peer id, at which it got through to us

    @property
    def is_from_outside(self) -> bool:
        """Whether the peer sees us at an address that is not of a private network."""
        return any(not is_private(tcp_multiaddr(host, 0)) for host in self.seen)

    def to_bytes(self) -> bytes:
        """What `of_bytes` reads; later versions append to it."""
        return bytes(msgpack.packb([self.seen, self.reached]))

    @classmethod
    def of_bytes(cls, data: bytes) -> "Finding":
        """Read a peer's answer; raises RemoteProtocolError."""
        try:
            values = msgpack.unpackb(data)
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("The answer to a dial-back is not msgpack.") from error
        match values:
            case [list(seen), list(reached), *_] if (
                len(seen) <= HOSTS_CAP
                and len(reached) <= HOSTS_CAP * PORTS_CAP
                and all(map(_is_host, seen))
                and all(isinstance(each, str) and len(each) < 100 for each in reached)
            ):
                return cls(tuple(seen), tuple(reached))
        raise RemoteProtocolError("The answer to a dial-back makes no sense.")


async def ask_dial_back(channel: Channel, peer: str, ports: Iterable[int]) -> Finding:
    """Let a peer try to reach us at these ports; raises PeerError, RemoteProtocolError."""
    payload = msgpack.packb([list(ports)[:PORTS_CAP]])
    return Finding.of_bytes(await channel.ask(peer, QUESTION, payload, timeout_seconds=ASK_SECONDS))


class DialBack:
    """Answers the question of every peer, within limits."""

    def __init__(self, connected: Connected, is_peer_at: IsPeerAt) -> None:
        self._connected = connected
        self._is_peer_at = is_peer_at
        self._of_one = Budget(OF_ONE_PER_SECOND, OF_ONE_BURST)
        self._of_all = Budget(OF_ALL_PER_SECOND, OF_ALL_BURST)

    async def answer(self, peer: str, payload: bytes) -> bytes:
        """Dial the asker where it is seen; raises PeerRefused, RemoteProtocolError."""
        ports = ports_of(payload)
        if not (self._of_one.takes(peer) and self._of_all.takes("all")):
            raise PeerRefused("You ask too often.", retry_after_seconds=RETRY_SECONDS)
        connected = await self._connected()
        seen = hosts_of(connected.get(peer, ()))
        ends = [(host, port) for host in seen for port in ports]
        outcomes = await asyncio.gather(*(self._is_peer_at(*end, peer) for end in ends))
        reached = [
            tcp_multiaddr(*end) for end, is_there in zip(ends, outcomes, strict=True) if is_there
        ]
        return Finding(seen, tuple(reached)).to_bytes()


def ports_of(payload: bytes) -> tuple[int, ...]:
    """The ports that an asker names; raises RemoteProtocolError."""
    try:
        values = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("A question for a dial-back is not msgpack.") from error
    match values:
        case [list(ports), *_] if ports and all(type(p) is int and 0 < p < 65536 for p in ports):
            return tuple(dict.fromkeys(ports))[:PORTS_CAP]
    raise RemoteProtocolError("A question for a dial-back names no ports.")


def hosts_of(multiaddrs: Iterable[str]) -> tuple[str, ...]:
    """The IP addresses at the other ends of connections; those of relays are not the peer's."""
    parts = [each.split("/") for each in multiaddrs if CIRCUIT not in each]
    hosts = [words[2] for words in parts if len(words) > 2 and words[1] in ("ip4", "ip6")]
    return tuple(dict.fromkeys(filter(_is_host, hosts)))[:HOSTS_CAP]


def _is_host(value: object) -> bool:
    try:
        return isinstance(value, str) and not ipaddress.ip_address(value).is_unspecified
    except ValueError:
        return False
