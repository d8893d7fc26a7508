"""Introduction: the word of a person's nodes that a client is theirs, for hosts with allow lists.

A client has a new id each time, so that nobody can tell what one person asks. Who wants to be known
as the person behind a node says so: each of the nodes' keys signs the client's id for a while.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from swarm.errors import BadInput
from swarm.trust.identity import (
    KEY_FILE,
    Identity,
    load_identity,
    peer_of_public_key,
    public_key_of,
    verify,
)
from swarm.trust.network_clock import CLOCK

WORD = struct.Struct("!32sQ64s")  # a node's public key, until in seconds, its signature
NODES_CAP = 4
INTRODUCED_SECONDS = 86400.0
KNOWN_CAP = 1024  # clients that were introduced here, the latest
DOMAIN = b"swarm introduction 1"


class Introductions:
    """Our own, which we show to others, and whose each peer is that has shown one here."""

    def __init__(
        self, swarm: str, own: bytes = b"", clock: Callable[[], float] = CLOCK.now
    ) -> None:
        self.own = own
        self._swarm, self._clock = swarm, clock
        self._known: OrderedDict[str, frozenset[str]] = OrderedDict()

    def hear(self, peer: str, shown: bytes) -> None:
        """A peer says whose it is; what is not genuine says nothing."""
        if found := introduced_by(self._swarm, peer, shown, self._clock()):
            self._known[peer] = found
            self._known.move_to_end(peer)
            if len(self._known) > KNOWN_CAP:
                self._known.popitem(last=False)

    def kin_of(self, peer: str) -> frozenset[str]:
        """The nodes that have said that a peer is theirs."""
        return self._known.get(peer, frozenset())


def nodes_of(state: Path) -> list[Identity]:
    """The nodes of a state folder, by their keys, which need not be free; raises BadInput."""
    found = [load_identity(path) for path in sorted(state.glob(f"node-*/{KEY_FILE}"))]
    if not found:
        raise BadInput(
            f"No node has run with the state folder {state}, so none can introduce its clients.",
            "Leave --introduce out, or name the node's folder with --state.",
        )
    return found


def introduction_of(swarm: str, client: str, nodes: Iterable[Identity], now: float) -> bytes:
    """What a client shows; empty without nodes."""
    until = int(now + INTRODUCED_SECONDS)
    signed = _signed(swarm, client, until)
    return b"".join(
        WORD.pack(public_key_of(node.peer), until, node.sign(signed))
        for node in list(nodes)[:NODES_CAP]
    )


def introduced_by(swarm: str, client: str, shown: bytes, now: float) -> frozenset[str]:
    """The nodes that say now that a client is theirs; nobody if anything is not genuine."""
    words, rest = divmod(len(shown), WORD.size)
    if rest or words > NODES_CAP:
        return frozenset()
    found = set[str]()
    for key, until, signature in WORD.iter_unpack(shown):
        node = peer_of_public_key(key)
        if until < now or not verify(node, _signed(swarm, client, until), signature):
            return frozenset()
        found.add(node)
    return frozenset(found)


def _signed(swarm: str, client: str, until: int) -> bytes:
    name = swarm.encode()
    return DOMAIN + struct.pack("!IQ", len(name), until) + name + public_key_of(client)
