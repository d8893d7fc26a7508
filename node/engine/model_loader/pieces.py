"""Pieces: which bytes of a checkpoint's files a shard needs, and whether they are here."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

from node.engine.parallel.tensor_parallel import Cut
from swarm.checkpoint.byte_ranges import Range, Ranges, merged
from swarm.checkpoint.safetensors_headers import TensorHeader
from swarm.checkpoint.sparse_file import missing
from swarm.errors import BadModel

GAP_BYTES = 1 << 16  # smaller gaps within a tensor are not worth a request
BRIDGE = 0.002  # of what lies before a gap: so small ones between tensors are fetched as well

Group = list[tuple[TensorHeader, Cut | None]]
Provide = Callable[[Mapping[str, Ranges]], None]  # blocks; raises SwarmError


def require_bytes(group: Group, provide: Provide | None) -> None:
    """Let `provide` fetch or check the bytes of these tensors; raises BadModel if some lack."""
    paths = {header.file.name: header.file for header, _ in group}
    wanted = _wanted(group)
    if provide is not None and wanted:
        provide(wanted)
    lacking = [name for name, ranges in wanted.items() if missing(paths[name], ranges)]
    if lacking:
        name = min(lacking)
        raise BadModel(f"{name} lacks bytes of this shard here.", "Name the model by its hub id.")


def ranges_of(header: TensorHeader, cut: Cut | None) -> list[Range]:
    """The bytes of a tensor's slice: rows and experts apart, but of a cut by columns the span."""
    if cut is None or not header.parameters:
        return [(header.start, header.end)]
    outer = math.prod(header.shape[: cut.dim])
    stride = (header.end - header.start) // outer  # bytes from one block of the cut to the next
    unit = stride // header.shape[cut.dim]
    kept = sum(high - low for low, high in cut.intervals) * unit
    if outer > 1 and stride - kept < GAP_BYTES:
        return [(header.start, header.end)]
    return [
        (header.start + block * stride + low * unit, header.start + block * stride + high * unit)
        for block in range(outer)
        for low, high in cut.intervals
    ]


def _wanted(group: Group) -> dict[str, Ranges]:
    found: dict[str, list[Range]] = defaultdict(list)
    for header, cut in group:
        found[header.file.name] += ranges_of(header, cut)
    return {name: merged(each, bridge=BRIDGE) for name, each in found.items()}
