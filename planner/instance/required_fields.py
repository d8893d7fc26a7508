"""require_fields: name everything that a cluster file lacks at once, not one field a run."""

from collections.abc import Iterator, Sequence

from planner.instance.fields import NEXT, Fields
from swarm.errors import BadInput

GPU_FIELDS = ("mem_GB", "hbm_GBps", "tflops_dense_16bit")
MODEL_FIELDS = ("layers", "hidden", "kv_heads", "ffn", "vocab", "params_per_layer")
LINK_FIELDS = ("lat_ms", "bw_Gbps")


def require_fields(file: Fields, entry: Fields) -> None:
    """Raise BadInput with every field that this instance of the file lacks."""
    lacking = list(_lacking(file, entry))
    if len(lacking) == 1:
        raise BadInput(f"{file.file}: {lacking[0]} is missing.", NEXT)
    if lacking:
        raise BadInput(f"{file.file}: these fields are missing: {', '.join(lacking)}.", NEXT)


def _lacking(file: Fields, entry: Fields) -> Iterator[str]:
    yield from _absent(entry, ("model", "machines"))
    machines = entry.sections("machines") if "machines" in entry.values else []
    for machine in machines:
        needed = ("id", "gpu") if machine.values.get("count", 1) else ("id",)
        yield from _absent(machine, needed)
    yield from _within(file, "models", [entry.values.get("model")], MODEL_FIELDS)
    kinds = dict.fromkeys(machine.values.get("gpu") for machine in machines)
    yield from _within(file, "gpu_types", list(kinds), GPU_FIELDS)
    yield from _links(entry, machines)
    load = entry.section("workload") if entry.has("workload") else None
    for mean, other in (("mean_input", "mean_output"), ("input_tokens", "output_tokens")):
        if load and load.has(mean):
            yield from _absent(load, (other,))


def _within(
    file: Fields, section: str, names: Sequence[object], needed: Sequence[str]
) -> Iterator[str]:
    """What entries of a section lack, of those that are there."""
    if not file.has(section):
        return
    entries = file.section(section)
    for name in names:
        if isinstance(name, str) and name in entries.values:
            yield from _absent(entries.section(name), needed)


def _links(entry: Fields, machines: Sequence[Fields]) -> Iterator[str]:
    regions = [machine.values.get("region", "") for machine in machines]
    network = entry.section_or_empty("network")
    if len(set(regions)) < len(regions):  # two machines of one region
        if network.has("same_region"):
            yield from _absent(network.section("same_region"), LINK_FIELDS)
        elif not _share_hosts(machines):
            yield f"{network.path}same_region"
    if network.has("inter_region_default"):
        yield from _absent(network.section("inter_region_default"), LINK_FIELDS)
    pairs = network.sections("inter_region_pairs") if network.has("inter_region_pairs") else []
    for pair in pairs:
        yield from _absent(pair, ("a", "b", *LINK_FIELDS))


def _share_hosts(machines: Sequence[Fields]) -> bool:
    """Whether all machines are parts of one host, and need no network among them."""
    hosts = {str(machine.values.get("host", "")) for machine in machines}
    return len(hosts) == 1 and "" not in hosts


def _absent(fields: Fields, names: Sequence[str]) -> Iterator[str]:
    return (f"{fields.path}{name}" for name in names if name not in fields.values)
