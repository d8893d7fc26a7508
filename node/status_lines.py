"""StatusLines: at most ten lines until a node is ready, then its turning points."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from node.network.reachability import ReachState
from node.worker.messages import Loaded
from swarm.formatting import bytes_text, printable, short_id
from swarm.hardware import WIDTHS, Device
from swarm.invites import peer_of_address
from swarm.model_spec import BYTES_PER_VALUE, ModelSpec
from swarm.p2p.addresses import is_loopback, readable
from swarm.plan import Assignment
from swarm.records import Capability

Say = Callable[[str], None]
REASON_SHOWN = 300  # characters of a planner's or a worker's words
SHOWN = 3  # addresses
WAITING_SECONDS = 30.0  # between two reasons for having no plan, which each newcomer changes


class StatusLines:
    """Says each thing once, in the order in which it happens."""

    def __init__(
        self,
        say: Say,
        show_progress: Callable[[float], None],
        spec: ModelSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._clock = clock
        self.show_progress = show_progress
        self._spec = spec
        self._said: set[str] = set()
        self._waits_for = ""
        self._waits_since = 0.0
        self._reach: object = None  # what was last said of it, without how many peers say so
        self._weight_bytes: dict[int, float] = {}  # of one weight, by device

    def introduce(self, name: str, peer: str, where: str) -> None:
        """Who am I, and can others reach me."""
        self._say(f"node: {name} ({short_id(peer)}), {where}")

    def reach(self, state: ReachState) -> None:
        """How others reach us, by their own word: said again when more than a count changes."""
        verdict = state.verdict and replace(state.verdict, tried=0, reached=0)
        found = replace(state, verdict=verdict, local=(), home="")
        if found != self._reach:
            self._reach = found
            self._say(f"reach: {reach_words(state)}")

    def offer(self, device: Device, why_memory: str = "") -> None:
        """What I offer, and why so much memory."""
        speed = f"{bytes_text(device.bytes_per_second)}/s decode, {device.flops / 1e9:.1f} GFLOP/s"
        memory = bytes_text(device.memory_bytes) + (f" ({why_memory})" if why_memory else "")
        self._weight_bytes[device.index] = device.weight_bytes
        is_int8 = device.weight_bytes < WIDTHS[device.dtype]
        form = f"int8 and {device.dtype}" if is_int8 else device.dtype
        self._say(f"offer: device {device.index}, {device.name}, {memory}, {speed}, in {form}")

    def swarm(self, swarm: str) -> None:
        """What is served here."""
        spec = self._spec
        size = bytes_text(spec.layers * spec.layer_parameters * BYTES_PER_VALUE)
        self._say(f"swarm: {swarm} serves {spec.name}, {spec.layers} layers of {size} in all")

    def uncertified(self) -> None:
        """Say that whoever has seen the key is in for good, and what to do."""
        self._say(
            "note: this swarm was founded before members had certificates: who knows its key may"
            " join for ever. To be able to revoke, found another with --swarm NAME --key"
        )

    def invite(self, invite: str) -> None:
        """How others join."""
        self._say(f"invite: {invite}")
        self._say(f"join: python -m swarm.node --join {invite}")

    def enclosed(self) -> None:
        """Nobody outside can use the invite, and what to do."""
        self._say(
            "note: the invite names private addresses only, so nobody outside this network can join"
            " by it. Forward a port of the router (--port 4001 --announce ADDRESS:4001), or name a"
            " relay (--relay; `swarm relay --alone` on a public machine says which)"
        )

    def asked(self, swarm: str, before: str) -> None:
        """Which swarm commands of this user ask from now on, if that was another one."""
        if before not in ("", swarm):
            self._say(f"asked: `swarm generate` without --join now asks {swarm}, not {before}")

    def waiting(self, reason: str) -> None:
        """Why no plan serves the model: said again when the reason has changed, not at every peer.

        To be told again and again: what is not said now is said later, if it is still so.
        """
        now = self._clock()
        is_news = reason not in ("", self._waits_for)
        if is_news and (not self._waits_for or now - self._waits_since >= WAITING_SECONDS):
            self._waits_for, self._waits_since = reason, now
            self._say(f"waiting: {printable(reason, REASON_SHOWN)}")

    def spare(self, index: int, memory_bytes: int) -> None:
        """The plan has no part for the device."""
        if "spare" in self._said:
            return
        self._said.add("spare")
        layer = self._spec.layer_parameters * self._weight_bytes.get(index, BYTES_PER_VALUE)
        small = memory_bytes < layer
        why = f"too small for one layer of {bytes_text(layer)}" if small else "not needed now"
        self._say(f"spare: device {index} is {why}; it is idle")

    def unreached(self) -> None:
        """The plan has no part for us, since others cannot come to us."""
        if "unreached" not in self._said:
            self._said.add("unreached")
            self._say(
                "no part: nobody can reach this node (no relay); "
                "forward its port and give --announce, or let a public peer join"
            )

    def reached(self) -> None:
        """Others can come to us: if they cannot later, that is news."""
        self._said.discard("unreached")

    def assigned(self, part: Assignment, planner: str, term: int) -> None:
        """Which layers and which share, and who says so."""
        self._said.discard("spare")
        self._waits_for = ""
        self._say(f"plan: {self._part(part)}; by planner {short_id(planner)} in its term {term}")

    def ready(self, part: Assignment, loaded: Loaded, fetched: str = "") -> None:
        """Serving; `fetched` says what came from elsewhere first."""
        size = f"{bytes_text(loaded.weight_bytes)} loaded"
        if loaded.bytes_kept:
            new = bytes_text(loaded.weight_bytes - loaded.bytes_kept)
            size = f"{new} new of {bytes_text(loaded.weight_bytes)}"
        read = f"{bytes_text(loaded.bytes_read)} read{fetched}"
        free = f"{loaded.free_tokens} KV tokens free"
        role = "" if part.leads else " (its leader takes the requests)"
        layers = _layers(part)
        self._say(f"ready: {layers}{role}, {size}, {read}, {free}")

    def link(self, peer: str, bytes_per_second: float) -> None:
        """How activations go to a peer: as int8 because of this speed, or in full again (0)."""
        form = "in full"
        if bytes_per_second:
            form = f"as int8: the link carries {bytes_text(bytes_per_second)}/s"
        self._say(f"link: activations to {short_id(peer)} travel {form}")

    def unplanned(self) -> None:
        """Nobody who may plan is here."""
        if "unplanned" not in self._said:
            self._said.add("unplanned")
            self._say("planner: nobody who may plan is here; what is served goes on as it is")

    def planned_again(self) -> None:
        """Somebody plans: if nobody does later, that is news."""
        self._said.discard("unplanned")

    def lost(self, index: int, cause: str) -> None:
        """A shard is gone, and why."""
        why = printable(cause, REASON_SHOWN).rstrip(".")
        self._say(f"lost: the shard of device {index} ({why}); loading again when planned")

    def released(self, index: int, reason: str) -> None:
        """A shard was given up because the plan has no part for its device."""
        self._waits_for = reason or self._waits_for
        why = f": {printable(reason, REASON_SHOWN)}" if reason else ", the plan has no part for it"
        self._say(f"released: device {index} no longer holds layers{why}")

    def paused(self, why: str) -> None:
        """The owner wants the devices."""
        self._waits_for = ""
        self._said.discard("spare")
        self._say(f"paused: {why}; no device is in use, the node stays a member")

    def resumed(self) -> None:
        """The owner lets the devices serve again."""
        self._say("resumed: the devices are offered to the swarm again")

    def served(self, words: str) -> None:
        """What the last minute, or hour, was worth."""
        self._say(f"served: {words}")

    def left(self) -> None:
        """The end."""
        self._say("left: record withdrawn, sessions handed over")

    def _part(self, part: Assignment) -> str:
        stage, spec = part.stage, self._spec
        shard = stage.shards[part.rank]
        layers = f"{_layers(part)} of {spec.layers}"
        if len(stage.shards) == 1:
            return f"{layers}, whole"
        share = f"{shard.kv} of {spec.kv_heads} KV heads, {shard.mlp} of {spec.mlp_blocks} blocks"
        return f"{layers}, {share}, rank {part.rank} of {len(stage.shards)}"


def _layers(part: Assignment) -> str:
    return f"layers {part.stage.start}-{part.stage.end - 1}"


def reach_of(addresses: Sequence[str], announced: Sequence[str]) -> str:
    """Where others reach us, as far as this machine knows."""
    if announced:
        return f"announced at {_listed(announced)} (not checked)"
    far = [each for each in addresses if "/udp/" not in each and not is_loopback(each)]
    if not far:
        return "reachable from this machine only"
    return f"listens at {_listed(far)} (not checked from outside)"


def reach_words(state: ReachState) -> str:
    """What dial-backs came to, and how others come to us if they cannot dial us."""
    verdict = state.verdict
    if verdict is None:
        return _through(state) if state.is_private else "not checked: nobody has dialed back"
    if verdict.is_reachable:
        where = "" if verdict.is_from_outside else " in this network"
        at = f"reachable at {_listed(verdict.at)}{where}"
        return f"{at}, dialed back by {_peers(verdict.reached)}"
    tried = f"not reachable from outside ({_peers(verdict.tried)} tried {verdict.seen})"
    if not verdict.is_from_outside:
        return f"not reachable from {_peers(verdict.tried)} of this network: a firewall may be why"
    return f"{tried}; {_through(state)}"


def _through(state: ReachState) -> str:
    if state.relays:
        names = [short_id(peer_of_address(relay)) for relay in state.relays]
        return f"joins through relay {' and '.join(names)}"
    return (
        "no relay holds a place for it yet: forward a port of the router (--port 4001 --announce"
        " ADDRESS:4001), or run `swarm relay` on a machine with a public address"
    )


def _peers(count: int) -> str:
    return f"{count} peer{'s' * (count != 1)}"


def _listed(addresses: Sequence[str]) -> str:
    known = list(dict.fromkeys(readable(address) for address in addresses))
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def name_of(capability: Capability, peer: str) -> str:
    """What people call a peer."""
    return capability.name or short_id(peer)
