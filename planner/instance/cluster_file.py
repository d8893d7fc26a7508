"""read_instance: a cluster file's instance as a planning problem, checked field by field."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.instance.fields import NEXT, Fields
from planner.instance.gpu_catalog import GPUS
from planner.instance.model_config import BYTES_16BIT, model_fields
from planner.instance.required_fields import require_fields
from planner.problem import PlanDevice, PlanModel, Problem, Workload, link_tables
from swarm.errors import BadInput
from swarm.plan import COLUMNS_PER_BLOCK

MEMORY_EFFICIENCY, COMPUTE_EFFICIENCY, USABLE_MEMORY = 0.8, 0.5, 0.92
SAME_HOST = (10e-6, 16e9)  # seconds one way, bytes/s
PCIE4 = SAME_HOST  # between GPUs of a machine, unless its `intra` says otherwise
ALONE = (0.0, 1e12)  # a GPU that has no other beside it
HERE = "here"  # the region of machines that name none
MOST_DEVICES = 1024  # in one machine
RELAY_FACTOR = 2.0  # between two machines behind NAT
NEXT_ID = "Take one of these ids."


@dataclass(frozen=True, slots=True)
class Instance:
    """One cluster of a file: the problem, and the file's own words on it."""

    id: str
    problem: Problem
    fields: Fields
    capacity: dict[str, list[float]]  # Helix: tokens/s of a GPU kind by layers held


def read_file(path: str | Path) -> Fields:
    """Read a cluster file; raises BadInput if it is not there or not JSON."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}.", "Name a readable file.") from error
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}.", NEXT) from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the file must hold one JSON object.", NEXT)
    return Fields(data, "", str(path))


def instance_ids(file: Fields) -> list[str]:
    """Ids of all instances of a file, in its order."""
    return [entry.text("id") for entry in file.sections("instances")]


def read_instance(file: Fields, instance_id: str, objective: str = "latency") -> Instance:
    """The instance of that id; raises BadInput naming file and field where something is wrong."""
    entries = file.sections("instances")
    entry = next((e for e in entries if e.values.get("id") == instance_id), None)
    if entry is None:
        ids = ", ".join(str(e.values.get("id")) for e in entries)
        raise BadInput(f"{file.file}: instances has no id {instance_id!r}, only {ids}.", NEXT_ID)
    require_fields(file, entry)
    machines = {m.text("id"): m for m in entry.sections("machines")}
    devices = tuple(d for m in machines.values() for d in devices_of(file, m))
    if not devices:
        raise entry.refuse("machines", "hold no device at all")
    if len(machines) != len(entry.sections("machines")):
        raise entry.refuse("machines", "use one id twice")
    latency, bandwidth = link_tables(devices, link_rule(entry, machines))
    problem = Problem(
        model=model_of(file, entry),
        devices=devices,
        latency=latency,
        bandwidth=bandwidth,
        workload=workload_of(entry),
        objective=objective,
    )
    return Instance(instance_id, problem, entry, _capacity(entry))


def model_of(file: Fields, entry: Fields) -> PlanModel:
    """The model that the instance names."""
    name = entry.text("model")
    models = file.section_or_empty("models")
    config = _config_of(file, name)
    if name in models.values:
        model = models.section(name)
    elif config.is_file():
        values = model_fields(read_file(config))
        name, model = config.parent.name, Fields(values, "", str(config))
    else:
        known = f"known are {', '.join(sorted(models.values))}; " if models.values else ""
        why = f"names the unknown model {name!r}; {known}a folder with a config.json will do too"
        raise entry.refuse("model", why)
    hidden, ffn = model.count("hidden"), model.count("ffn")
    if not isinstance(model.values.get("ffn_gated", False), bool):
        raise model.refuse("ffn_gated", "must be true or false")
    mlp = (3 if model.values.get("ffn_gated") else 2) * hidden * ffn
    parameters = model.number("params_per_layer")
    if parameters <= mlp:
        raise model.refuse("params_per_layer", f"is {parameters:g}, less than its MLP's {mlp}")
    return PlanModel(
        name=name,
        layers=model.count("layers"),
        hidden=hidden,
        kv_heads=model.count("kv_heads"),
        mlp_blocks=math.ceil(ffn / COLUMNS_PER_BLOCK),
        attention_parameters=parameters - mlp,
        mlp_parameters=mlp,
        embedding_parameters=model.count("vocab") * hidden,
        bytes_per_weight=model.optional("bytes_per_weight", BYTES_16BIT),
        kv_bytes=_kv_bytes(model),
    )


def _config_of(file: Fields, name: str) -> Path:
    """The config.json that a model's name may mean, seen from the cluster file."""
    path = Path(file.file).parent / Path(name).expanduser()
    return path if path.suffix == ".json" else path / "config.json"


def _kv_bytes(model: Fields) -> float:
    """KV cache of one token in one layer: as given, or of 16-bit keys and values."""
    if model.has("kv_bytes_per_token_per_layer") or not model.has("head_dim"):
        return model.number("kv_bytes_per_token_per_layer")
    return 2 * model.count("kv_heads") * model.count("head_dim") * BYTES_16BIT


def devices_of(file: Fields, machine: Fields) -> list[PlanDevice]:
    """The devices of one machine but those listed as absent; none if its count is 0."""
    name, count = machine.text("id"), _count_of(machine)
    if count > MOST_DEVICES:
        raise machine.refuse("count", f"is {count} and must be at most {MOST_DEVICES}")
    if count == 0:
        return []
    absent = {int(index) for index in machine.values.get("absent", [])}
    kind = machine.text("gpu")
    kinds = file.section_or_empty("gpu_types")
    if kind not in {**kinds.values, **GPUS}:
        raise machine.refuse("gpu", f"names the unknown GPU {kind!r}; {_known_kinds(kinds, kind)}")
    gpu = kinds.section(kind) if kind in kinds.values else kinds.within(kind, GPUS[kind])
    memory = min(gpu.number("mem_GB"), machine.optional("ram_free_GB", math.inf))
    return [
        PlanDevice(
            id=f"{name}/{index}",
            machine=name,
            flops=gpu.number("tflops_dense_16bit") * 1e12,
            bytes_per_second=gpu.number("hbm_GBps") * 1e9,
            memory_bytes=memory * 1e9 * USABLE_MEMORY,
            compute_efficiency=machine.optional("flop_efficiency", COMPUTE_EFFICIENCY),
            memory_efficiency=machine.optional("memory_efficiency", MEMORY_EFFICIENCY),
            kind=kind,
            region=machine.text_or("region", HERE),
            lifetime_seconds=machine.optional("lifetime_s", math.inf),
            load_bytes_per_second=machine.optional("down_Mbps", 1000.0) * 1e6 / 8,
        )
        for index in range(count)
        if index not in absent
    ]


def _count_of(machine: Fields) -> int:
    return machine.count("count", least=0) if machine.has("count") else 1


def _known_kinds(kinds: Fields, wanted: str) -> str:
    """Which names there are: those like the one wanted, if any."""
    known = list({**kinds.values, **GPUS})
    close = [name for name in known if name.lower().startswith(wanted.lower()[:3])]
    few = f"the closest known are {', '.join(close)}" if close else f"known are {', '.join(known)}"
    return f"{few}; describe others under gpu_types"


def workload_of(entry: Fields) -> Workload:
    """Mean input and output tokens of the instance: given as means, as lists, or not at all."""
    load = entry.section_or_empty("workload")
    if load.has("mean_input"):
        return Workload(load.number("mean_input"), load.number("mean_output"))
    if load.has("input_tokens"):
        inputs, outputs = load.numbers("input_tokens"), load.numbers("output_tokens")
        return Workload(round(sum(inputs) / len(inputs)), round(sum(outputs) / len(outputs)))
    return Workload(512, 128)


def link_rule(
    entry: Fields, machines: dict[str, Fields]
) -> Callable[[PlanDevice, PlanDevice], tuple[float, float]]:
    """How far two devices are apart: one-way seconds and bytes/s."""
    network = entry.section_or_empty("network")
    same = _network_link(network.section("same_region")) if network.has("same_region") else None
    default = (
        network.section("inter_region_default") if network.has("inter_region_default") else None
    )
    far = _network_link(default) if default else None
    pairs = {
        frozenset((pair.text("a"), pair.text("b"))): _network_link(pair)
        for pair in _sections_or_none(network, "inter_region_pairs")
    }

    def rule(a: PlanDevice, b: PlanDevice) -> tuple[float, float]:
        here, there = machines[a.machine], machines[b.machine]
        if a.machine == b.machine:
            return _intra(here)
        if here.has("host") and here.values["host"] == there.values.get("host"):
            return SAME_HOST
        link = same if a.region == b.region else pairs.get(frozenset((a.region, b.region)), far)
        if link is None:
            ends = f"{a.machine} ({a.region}) and {b.machine} ({b.region})"
            name = "same_region" if a.region == b.region else "inter_region_pairs"
            raise network.refuse(name, f"holds no link between {ends}")
        return _access(link, here, there)

    return rule


def _sections_or_none(fields: Fields, name: str) -> list[Fields]:
    return fields.sections(name) if fields.has(name) else []


def _access(link: tuple[float, float], here: Fields, there: Fields) -> tuple[float, float]:
    """The link as limited by relays and by the two access lines."""
    latency, bandwidth = link
    if here.values.get("nat") and there.values.get("nat"):
        latency *= RELAY_FACTOR
    up = here.optional("up_Mbps", math.inf) * 1e6 / 8
    down = there.optional("down_Mbps", math.inf) * 1e6 / 8
    return latency, min(bandwidth, up, down)


def _network_link(link: Fields) -> tuple[float, float]:
    return link.number("lat_ms", above=False) * 1e-3, link.number("bw_Gbps") * 1e9 / 8


def _intra(machine: Fields) -> tuple[float, float]:
    if not machine.has("intra"):
        return ALONE if _count_of(machine) == 1 else PCIE4
    intra = machine.section("intra")
    if _count_of(machine) == 1 and not intra.has("lat_us"):
        return ALONE
    return intra.number("lat_us", above=False) * 1e-6, intra.number("bw_GBps") * 1e9


def _capacity(entry: Fields) -> dict[str, list[float]]:
    if not entry.has("capacity_tokens_s"):
        return {}
    capacity: Fields = entry.section("capacity_tokens_s")
    values: dict[str, Any] = dict(capacity.values)
    return {kind: capacity.numbers(kind) for kind in values}
