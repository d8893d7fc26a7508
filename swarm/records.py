"""Records on the board, each signed by its peer: what it serves, could do, plans or relays."""

import math
import typing
from dataclasses import astuple, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar

from swarm.hardware import Device, Link

RECORD_CAP = 2048  # bytes of one signed record
PENDING = "pending"  # an inventory that is being made
TTL_CAP = 300.0  # seconds; no record lives longer
TERM_CAP = 2**40  # no record speaks of a higher term: there is always a next one that travels


@dataclass(frozen=True, slots=True)
class Record:
    """What one peer says to all, under a key of the swarm and its own peer id.

    Fields are only ever appended, with a default: peers of an older version ignore them.
    """

    KEY: ClassVar[str]  # last part of the board's key
    TTL_SECONDS: ClassVar[float]
    SHARDED: ClassVar[bool] = False  # the key is split by peer-id prefix in large swarms


@dataclass(frozen=True, slots=True)
class Manifest(Record):
    """The founder's word on what this swarm serves."""

    KEY = "manifest"
    TTL_SECONDS = 300.0

    model: str
    digest: str
    dtype: str
    founded: float  # wall-clock seconds
    revision: str = ""  # the hub's commit, if the model comes from there
    inventory: str = ""  # digest of what peers may hand out; "" nothing, PENDING not known yet
    weights: str = ""  # digest over what the hub says its weight files hold; "" if not from there


@dataclass(frozen=True, slots=True)
class Capability(Record):
    """What a peer could do: its devices and its links to some neighbours."""

    KEY = "capability"
    TTL_SECONDS = 60.0
    SHARDED = True

    model: str  # digest of the model it was told to serve
    devices: list[Device]
    links: list[Link]
    host: str  # machine id: peers with equal host share a machine
    reachable: bool  # others can open a direct connection to it
    since: float  # wall-clock seconds when it joined
    name: str = ""
    version: str = ""
    leaving: bool = False
    term: int = 0  # of the last plan that it accepted
    addresses: list[str] = field(default_factory=list)  # multiaddrs, for who cannot find it
    protocol: int = 1  # the version that it speaks (swarm/wire/version.py)
    relays: list[str] = field(default_factory=list)  # multiaddrs with /p2p/<id> that hold a place
    local: list[str] = field(default_factory=list)  # multiaddrs inside its home, for its neighbours
    home: str = ""  # equal for peers behind one router; says nothing else about it
    paused: bool = False  # its owner has taken the devices back for a while: it offers none

    def __post_init__(self) -> None:
        _require_term(self.term)


@dataclass(frozen=True, slots=True)
class Member:
    """One shard of an advertised stage."""

    peer: str
    device: int
    kv: int
    mlp: int


@dataclass(frozen=True, slots=True)
class StageAdvert:
    """One stage that a leader has loaded, self-tested and serves."""

    start: int
    end: int
    members: list[Member]  # the first one is the leader: the peer that signs
    step_seconds: float  # time of one decode step of one session, measured
    free_tokens: int  # KV tokens that are free
    sessions: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end or not self.members:
            raise ValueError(f"stage [{self.start},{self.end}) needs a layer and a member")
        if min(self.step_seconds, self.free_tokens, self.sessions) < 0:
            raise ValueError(f"stage [{self.start},{self.end}) has a negative figure")


@dataclass(frozen=True, slots=True)
class Trouble:
    """A part of the plan that a device of ours could not take up, or has stopped taking up."""

    device: int
    start: int
    end: int
    failures: int  # in a row; 0 if its load has come to a halt
    cause: str  # in a few words
    blamed: str = ""  # the peer whose rank of the stage was missing, by this peer's word


@dataclass(frozen=True, slots=True)
class Advert(Record):
    """The stages that a peer leads and serves now: what clients route by; and what it cannot."""

    KEY = "advert"
    TTL_SECONDS = 30.0
    SHARDED = True

    model: str
    stages: list[StageAdvert]
    term: int  # of the plan that made the stages
    leaving: bool = False
    troubles: list[Trouble] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require_term(self.term)


@dataclass(frozen=True, slots=True)
class Lease(Record):
    """The elected planner's claim."""

    KEY = "planner"
    TTL_SECONDS = 15.0

    term: int
    until: float  # wall-clock seconds
    proof: bytes = b""  # that its author may plan, in an open swarm (swarm/trust/certificates.py)

    def __post_init__(self) -> None:
        _require_term(self.term)


@dataclass(frozen=True, slots=True)
class PlanRef(Record):
    """Where the current plan is: fetch it by digest from its holder."""

    KEY = "plan"
    TTL_SECONDS = 60.0

    term: int
    rank: int  # of the planner among the candidates: ties between equal terms
    digest: str
    size: int  # bytes of the plan's JSON

    def __post_init__(self) -> None:
        _require_term(self.term)
        if self.rank < 0 or self.size < 0:
            raise ValueError("rank and size of a plan cannot be negative")


@dataclass(frozen=True, slots=True)
class Relay(Record):
    """A peer with a public address that carries connections to peers behind routers."""

    KEY = "relay"
    TTL_SECONDS = 60.0

    addresses: list[str]  # multiaddrs, without its peer id
    since: float  # wall-clock seconds when it began
    name: str = ""
    version: str = ""
    protocol: int = 1  # the version that it speaks (swarm/wire/version.py)
    leaving: bool = False


KINDS: tuple[type[Record], ...] = (Manifest, Capability, Advert, Lease, PlanRef, Relay)
PARTS = (Device, Link, Member, StageAdvert, Trouble)


def record_to_list(record: Record) -> list[Any]:
    """A record as plain values in order, as it goes on the board: half the size of a map."""
    values = _listed(astuple(record))
    return list(values)


def record_of_map(kind: type[Record], values: object) -> Record:
    """Build a record from a map or a list; raises ValueError on missing or wrong fields.

    What is known of a later version's record is taken, and its further fields are left out.
    """
    built = _value_of(kind, values)
    if not isinstance(built, Record):
        raise ValueError(f"not a {kind.__name__}")
    return built


def _require_term(term: int) -> None:
    if not 0 <= term <= TERM_CAP:
        raise ValueError(f"a term is a number from 0 to {TERM_CAP}")


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _value_of(hint: Any, value: object) -> object:
    if hint is float:
        return _float_of(value)
    if typing.get_origin(hint) is list:
        return _list_of(typing.get_args(hint)[0], value)
    if hint in PARTS or (isinstance(hint, type) and issubclass(hint, Record)):
        return _dataclass_of(hint, value)
    if type(value) is not hint:
        raise ValueError(f"{value!r:.40} is not a {hint.__name__}")
    return value


def _float_of(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return float(value)


def _list_of(hint: Any, value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > 64:
        raise ValueError("a list of at most 64 entries is needed")
    return [_value_of(hint, item) for item in value]


@cache
def _hints_of(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass_of(kind: Any, value: object) -> object:
    names = [f.name for f in fields(kind)]
    if isinstance(value, list):
        value = dict(zip(names, value, strict=False))  # the last ones may be missing, or unknown
    if not isinstance(value, dict):
        raise ValueError(f"not the fields of a {kind.__name__}")
    hints = _hints_of(kind)
    known = {name: value[name] for name in names if name in value}
    try:
        return kind(**{name: _value_of(hints[name], item) for name, item in known.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} lacks a field") from error
