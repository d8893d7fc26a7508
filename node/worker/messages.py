"""What a node and the worker process of one device say to each other: same frames, other words."""

from dataclasses import dataclass, field
from typing import Any

from swarm.errors import RemoteProtocolError
from swarm.hardware import WIDEST
from swarm.wire.codec import Codec
from swarm.wire.messages import Message


@dataclass(slots=True)
class Describe(Message):
    """Node: what are the dimensions of the model in this folder, and is it complete?"""

    folder: str
    name: str  # to call it by


@dataclass(slots=True)
class Described(Message):
    """Worker: these; or why it is no model that we can serve."""

    model: dict[str, Any] = field(default_factory=dict)  # ModelSpec by field
    cause: str = ""
    next_step: str = ""


@dataclass(slots=True)
class Measure(Message):
    """Node: how fast is your device on these layer shapes?"""

    model: dict[str, Any]  # ModelSpec by field
    dtype: str = WIDEST  # of weights and activations
    quant: str = ""  # what the weights will be held as instead
    folder: str = ""  # of the model; read only to see what a quantised weight takes


@dataclass(slots=True)
class Measured(Message):
    """Worker: so fast, slowdown included."""

    bytes_per_second: float
    flops: float
    weight_bytes: float  # of one weight as the device will hold it


@dataclass(slots=True)
class Prepare(Message):
    """Node: open a listening socket for the tensor-parallel group `group`."""

    group: str
    host: str


@dataclass(slots=True)
class Prepared(Message):
    """Worker: reach me at this port; I shall show this certificate (DER)."""

    group: str
    port: int
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Rank:
    """Where one member of a group listens, and the certificate that it must show (DER)."""

    hosts: tuple[str, ...]  # IPv4 addresses to try, the likeliest first
    port: int
    certificate: bytes

    def to_wire(self) -> dict[str, Any]:
        """What `from_wire` reads."""
        return {"hosts": list(self.hosts), "port": self.port, "certificate": self.certificate}

    @classmethod
    def from_wire(cls, value: object) -> "Rank":
        """A rank of a LOAD; raises RemoteProtocolError."""
        match value:
            case {"hosts": list(hosts), "port": int(port), "certificate": bytes(certificate)} if (
                all(isinstance(host, str) for host in hosts)
            ):
                return cls(tuple(hosts), port, certificate)
        raise RemoteProtocolError("A rank does not say where it listens.")


@dataclass(slots=True)
class Load(Message):
    """Node: load this shard, join its group, test yourself."""

    group: str
    spec: dict[str, Any]  # StageSpec by field
    budget_bytes: int
    ranks: list[dict[str, Any]] = field(default_factory=list)  # Rank by field


@dataclass(slots=True)
class Need(Message):
    """Worker: the model's folder lacks bytes of this shard; the body says which, by file."""

    group: str


@dataclass(slots=True)
class Given(Message):
    """Node: they are there now; or why they are not."""

    group: str
    reason: str = ""


@dataclass(slots=True)
class Progress(Message):
    """Worker: this share of the load is done."""

    group: str
    fraction: float


@dataclass(slots=True)
class Loaded(Message):
    """Worker: the shard is loaded and has passed its self-test."""

    group: str
    weight_bytes: int
    bytes_read: int
    free_tokens: int
    step_seconds: float  # one decode step of one session
    bytes_kept: int = 0  # of the weights, in layers that the device held before


@dataclass(slots=True)
class Following(Message):
    """Worker of a rank that does not lead: so many sessions are open in the group now."""

    group: str
    sessions: int


@dataclass(slots=True)
class Broken(Message):
    """Worker: the shard or its group is lost; load again."""

    group: str
    reason: str


@dataclass(slots=True)
class Unload(Message):
    """Node: forget the shard and free its memory."""

    keep: bool = False  # but its layers: another shard follows


@dataclass(slots=True)
class Reserve(Message):
    """Node: open a session; the body holds the ids so far (int32)."""

    session: str
    capacity: int
    generated: int
    sampling: dict[str, Any]
    owner: str = ""  # whose prompts may share rows with this one; "" is nobody
    client: str = ""  # whose turn it takes
    returning: bool = False  # it had room here, and goes before newcomers


@dataclass(slots=True)
class Reserved(Message):
    """Worker: done, this many KV tokens are left; or refused with a code and a reason."""

    session: str
    free_tokens: int
    code: str = ""
    reason: str = ""
    held: int = 0  # leading tokens of the ids whose rows are here


@dataclass(slots=True)
class Release(Message):
    """Node: close a session."""

    session: str


@dataclass(slots=True)
class Compute(Message):
    """Node: run these rows (ids as i32, else hidden) through the shard."""

    session: str
    position: int
    tokens: int
    sample: bool
    dtype: str
    drafts: list[int] = field(default_factory=list)  # the last rows are of these guessed ids
    narrow: bool = False  # answer with rows as int8


@dataclass(slots=True)
class Computed(Message):
    """Worker: hidden rows in the body, or sampled ids; none when none was asked for.

    The body of ids has their log-probabilities, if the session wants them.
    """

    session: str
    position: int
    tokens: int
    sample: bool
    dtype: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    drafts: list[int] = field(default_factory=list)  # guesses of what follows `ids`
    queue_us: int = 0
    compute_us: int = 0
    free_tokens: int = 0


@dataclass(slots=True)
class Failed(Message):
    """Worker: this session's step could not be run."""

    session: str
    code: str
    reason: str


KINDS: dict[str, type[Message]] = {
    kind.__name__.upper(): kind
    for kind in (
        *(
            Describe,
            Described,
            Measure,
            Measured,
            Prepare,
            Prepared,
            Load,
            Need,
            Given,
            Progress,
            Loaded,
            Following,
            Broken,
            Unload,
        ),
        *(Reserve, Reserved, Release, Compute, Computed, Failed),
    )
}
CODEC = Codec(KINDS)
