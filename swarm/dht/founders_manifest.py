"""The founder's manifest with a signature that lasts: peers hand it on when the founder is gone.

A record on the board ends with its founder's heartbeat. What is kept here is signed apart from any
record, so that whoever holds it can show it to a newcomer, who trusts the founder's key alone.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack

from swarm.dht.board import Board
from swarm.errors import BadInput, PeerError, RemoteProtocolError, SwarmError
from swarm.p2p.channel import Channel
from swarm.records import Capability, Manifest, record_of_map, record_to_list
from swarm.trust.identity import is_founder, verify

logger = logging.getLogger(__name__)

QUESTION = "manifest"  # the name under which peers answer
PURPOSE = b"swarm manifest"  # what the signature is for
SIGNED_CAP = 4096  # bytes
PEERS = 64  # asked at most, AT_ONCE of them at a time
AT_ONCE = 8
ANSWER_SECONDS = 5.0
KEEP_SECONDS = 60.0  # between looks for a newer word to hand on
LOOK_SECONDS = 0.5  # between looks at the board

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest as its founder packed it."""

    founder: str
    content: bytes
    signature: bytes

    @classmethod
    def make(cls, founder: str, swarm: str, manifest: Manifest, sign: Sign) -> "SignedManifest":
        """What the founder of a swarm says, signed."""
        content: bytes = msgpack.packb(record_to_list(manifest))
        return cls(founder, content, sign(_signed_bytes(swarm, content)))

    def to_bytes(self) -> bytes:
        """As msgpack."""
        data: bytes = msgpack.packb([self.founder, self.content, self.signature])
        return data

    @classmethod
    def of_bytes(cls, data: bytes) -> "SignedManifest":
        """Read what `to_bytes` wrote; raises RemoteProtocolError."""
        try:
            values = msgpack.unpackb(data) if len(data) <= SIGNED_CAP else None
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("A signed manifest is not msgpack.") from error
        match values:
            case [str(founder), bytes(content), bytes(signature)]:
                return cls(founder, content, signature)
        raise RemoteProtocolError("A signed manifest is not understood.")

    def manifest_of(self, swarm: str) -> Manifest:
        """The manifest, if it is the word of that swarm's founder; raises RemoteProtocolError."""
        said = _signed_bytes(swarm, self.content)
        if not is_founder(swarm, self.founder) or not verify(self.founder, said, self.signature):
            raise RemoteProtocolError("A manifest is not signed by the founder of its swarm.")
        try:
            manifest = record_of_map(Manifest, msgpack.unpackb(self.content))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"A signed manifest is malformed: {error}.") from error
        assert isinstance(manifest, Manifest)
        return manifest


class ManifestKeeper:
    """Knows the founder's last word on a swarm, from the board or from who kept it."""

    def __init__(
        self, channel: Channel, board: Board, swarm: str, *, path: Path | None = None
    ) -> None:
        self._channel, self._board, self._swarm, self._path = channel, board, swarm, path
        self._kept: SignedManifest | None = None
        self._manifest: Manifest | None = None
        self._take_up()

    def hand_on(self) -> None:
        """Answer who asks for what we keep."""
        self._channel.answer(QUESTION, self._answer)

    def say(self, manifest: Manifest, sign: Sign) -> None:
        """As the founder: keep this word for others."""
        if _is_same(self._manifest, manifest):
            return
        self._keep(SignedManifest.make(self._channel.peer, self._swarm, manifest, sign))

    async def find(self, seconds: float = 0.0) -> Manifest | None:
        """The founder's latest word, or None if neither board nor peers know it in `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            found = await self._board.read(Manifest)
            if found:
                latest = max(found.values(), key=lambda each: each.founded)
                if not _is_same(self._manifest, latest):
                    await self._ask(list(found))  # for its signature, to hand it on later
            if self._manifest is None:
                await self._ask(list(await self._board.read(Capability)))
            if found:
                return latest
            if self._manifest is not None or time.monotonic() >= deadline:
                return self._manifest
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self) -> None:
        """Have the founder's latest word at hand while it, or who kept it, is there; never ends."""
        while True:
            try:
                await self.find()
            except SwarmError as error:
                logger.info("the founder's word is not to be had now: %s", error)
            await asyncio.sleep(KEEP_SECONDS)

    async def _ask(self, peers: list[str]) -> None:
        """Keep the latest of what peers kept."""
        others = [peer for peer in peers if peer != self._channel.peer][:PEERS]
        for start in range(0, len(others), AT_ONCE):
            answers = await asyncio.gather(*map(self._word_of, others[start : start + AT_ONCE]))
            for signed in filter(None, answers):
                self._keep(signed)
            if self._manifest is not None:
                return

    async def _word_of(self, peer: str) -> SignedManifest | None:
        try:
            data = await self._channel.ask(peer, QUESTION, b"", timeout_seconds=ANSWER_SECONDS)
            signed = SignedManifest.of_bytes(data)
            signed.manifest_of(self._swarm)
        except (PeerError, RemoteProtocolError) as error:
            logger.info("%s does not hand on the manifest: %s", peer, error)
            return None
        return signed

    async def _answer(self, _peer: str, _payload: bytes) -> bytes:
        if self._kept is None:
            raise BadInput("The founder's word is not kept here.", "Ask another peer.")
        return self._kept.to_bytes()

    def _keep(self, signed: SignedManifest) -> None:
        manifest = signed.manifest_of(self._swarm)
        if self._manifest is not None and manifest.founded < self._manifest.founded:
            return
        self._kept, self._manifest = signed, manifest
        if self._path is not None:
            fresh = self._path.with_suffix(f".{os.getpid()}.new")
            try:
                fresh.write_bytes(signed.to_bytes())
                fresh.replace(self._path)
            except OSError as error:
                logger.warning("the founder's word is not kept on the disk: %s", error)

    def _take_up(self) -> None:
        if self._path is None:
            return
        with suppress(OSError, SwarmError):  # absent, damaged, or of another swarm
            signed = SignedManifest.of_bytes(self._path.read_bytes())
            self._manifest, self._kept = signed.manifest_of(self._swarm), signed


def _signed_bytes(swarm: str, content: bytes) -> bytes:
    return b"\0".join((PURPOSE, swarm.encode(), content))


def _is_same(kept: Manifest | None, said: Manifest) -> bool:
    """Whether a word says nothing new but the time."""
    return kept is not None and replace(kept, founded=said.founded) == said
