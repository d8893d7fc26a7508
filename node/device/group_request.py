"""GroupRequest: what the leader of a stage asks of each other device of its group, or one of it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgpack

from node.device.endpoint import Endpoint
from swarm.errors import PeerRefused, RemoteProtocolError
from swarm.hardware import WIDEST
from swarm.plan import MOST, Assignment
from swarm.wire.messages import DTYPE_CAP

GROUP_CAP = 64  # characters in the name of a group
RANKS_CAP = 1024  # of a group, on the wire: the plan says how many there are


class GroupWord(StrEnum):
    """What is asked."""

    PREPARE = "prepare"  # listen for the group, and say where
    LOAD = "load"  # now that all listen: load the shard, dial the ranks before you
    LEAVE = "leave"  # a member's word to its leader, answered when nobody needs the group any more


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One request, with the shard that the leader believes to be ours."""

    word: GroupWord
    group: str
    device: int  # of the peer that is asked
    start: int
    end: int
    rank: int
    dtype: str = WIDEST  # a leader that knows of no dtypes means this one
    endpoints: tuple[Endpoint, ...] = ()  # of every rank; with LOAD only

    @classmethod
    def of(
        cls,
        word: GroupWord,
        group: str,
        assignment: Assignment,
        endpoints: tuple[Endpoint, ...] = (),
    ) -> "GroupRequest":
        """The request to the device that has this assignment."""
        stage = assignment.stage
        return cls(
            word=word,
            group=group,
            device=stage.shards[assignment.rank].index,
            start=stage.start,
            end=stage.end,
            rank=assignment.rank,
            dtype=stage.dtype,
            endpoints=endpoints,
        )

    @classmethod
    def of_leaving(cls, group: str, assignment: Assignment) -> "GroupRequest":
        """The word to the leader that the device which has this assignment leaves."""
        made = cls.of(GroupWord.LEAVE, group, assignment)
        return replace(made, device=assignment.stage.shards[0].index)

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        request = {
            "word": self.word.value,
            "group": self.group,
            "device": self.device,
            "ranks": [each.to_wire() for each in self.endpoints],
            "start": self.start,
            "end": self.end,
            "rank": self.rank,
            "dtype": self.dtype,
        }
        return bytes(msgpack.packb(request))

    @classmethod
    def from_bytes(cls, payload: bytes) -> "GroupRequest":
        """A stranger's request; raises RemoteProtocolError."""
        try:
            return cls.from_wire(msgpack.unpackb(payload))
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError("A group request is not msgpack.") from error

    @classmethod
    def from_wire(cls, value: object) -> "GroupRequest":
        """Read strictly, but for fields of a later version; raises RemoteProtocolError."""
        match value:
            case {
                "word": (GroupWord.PREPARE | GroupWord.LOAD | GroupWord.LEAVE) as word,
                "group": str(group),
                "device": device,
                "start": start,
                "end": end,
                "rank": rank,
                **others,
            } if 0 < len(group) <= GROUP_CAP and all(map(_is_count, (device, start, end, rank))):
                dtype = _dtype_of(others.get("dtype", WIDEST))
                endpoints = _endpoints_of(others.get("ranks", []))
                return cls(GroupWord(word), group, device, start, end, rank, dtype, endpoints)
        raise RemoteProtocolError("Not a group request.")

    def require_fit(self, peer: str, assignment: Assignment | None) -> Assignment:
        """The assignment, if it is what `peer` asks for; raises PeerRefused."""
        if assignment is None or assignment.stage.shards[0].peer != peer:
            raise PeerRefused("The plan that we accepted does not say so (yet).")
        stage = assignment.stage
        asked = (self.start, self.end, self.rank, self.dtype)
        if asked != (stage.start, stage.end, assignment.rank, stage.dtype):
            raise PeerRefused("The plan that we accepted gives us another shard.")
        return assignment

    def require_endpoints(self, ranks: int) -> tuple[Endpoint, ...]:
        """Where so many ranks listen; raises RemoteProtocolError."""
        if len(self.endpoints) != ranks:
            raise RemoteProtocolError("A leader does not say where its ranks listen.")
        return self.endpoints


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _dtype_of(value: object) -> str:
    if isinstance(value, str) and len(value) <= DTYPE_CAP:
        return value
    raise RemoteProtocolError("A leader names a dtype that is none.")


def _endpoints_of(value: object) -> tuple[Endpoint, ...]:
    if isinstance(value, list) and len(value) <= RANKS_CAP:
        return tuple(map(Endpoint.from_wire, value))
    raise RemoteProtocolError("A leader does not say where its ranks listen.")
