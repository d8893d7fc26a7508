"""What a run found: streams, their pauses by kind of fault, and what was left behind."""

from collections.abc import Mapping
from statistics import median

from benchmarks.chaos.remains import Remains
from benchmarks.chaos.streams import Tally
from benchmarks.report import Gate, Report

Pauses = tuple[float | None, float | None]  # median and 95th percentile at most, in seconds
FINISHED_GATE = 0.95
NOT_GATED: Pauses = (None, None)


def tell_streams(
    report: Report, tally: Tally, gates: Mapping[str, Pauses], finished: float = FINISHED_GATE
) -> None:
    """Note what became of the streams, and their pauses by kind of fault."""
    failed = tally.failed.total()
    share = tally.finished / max(tally.finished + failed, 1)
    report.add("streams", "finished", tally.finished, "")
    report.add("streams", "share finished", share, "", Gate(finished, at_most=False))
    report.add("streams", "wrong", tally.wrong, "", Gate(0))
    report.add("streams", "broken after their first token", tally.broken, "", Gate(0))
    for cause, count in tally.failed.items():
        report.add("streams", f"refused or broken: {cause}", count, "")
    for kind in sorted({pause.fault for pause in tally.pauses}):
        felt = sorted(p.seconds for p in tally.pauses if p.fault == kind and p.is_affected)
        report.add(kind, "streams that went elsewhere", len(felt), "")
        if felt:
            _tell_pauses(report, kind, felt, gates.get(kind, NOT_GATED))


def _tell_pauses(report: Report, kind: str, felt: list[float], gates: Pauses) -> None:
    middle, high = gates
    report.add(kind, "pause, median", median(felt), "s", Gate(middle) if middle else None)
    late = felt[min(len(felt) - 1, int(0.95 * len(felt)))]
    report.add(kind, "pause, p95", late, "s", Gate(high) if high else None)
    report.add(kind, "pause, worst", felt[-1], "s")


def tell_remains(report: Report, remains: Remains) -> None:
    """Note what was left behind, and each by its name."""
    found = {
        "processes": remains.processes,
        "sockets": remains.sockets,
        "temporary files": remains.files,
        "nodes that did not end well": remains.complaints,
    }
    for what, names in found.items():
        report.add("left", what, len(names), "", Gate(0))
        for name in names:
            report.add("left", f"{what}: {name}"[:100], 1, "")
