"""Measure the planner: every instance, growth with peers, re-planning, the paper's pools.

    python benchmarks/planner/run.py            writes RESULTS.md and the SVG plots here
    python benchmarks/planner/run.py growth     measures only parts with that word in the title

Seconds are CPU seconds of the one thread that plans (equal to wall time on an idle machine), so
that other work on the machine does not blur them.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]

import reference  # noqa: E402
from paper_pools import compare  # noqa: E402
from sensitivity import sensitivity  # noqa: E402
from volunteers import write_volunteers  # noqa: E402

from planner.best_plan import best_plan  # noqa: E402
from planner.cli.options import changed_file  # noqa: E402
from planner.cli.svg_charts import curves_chart, layers_chart  # noqa: E402
from planner.cost.cost_model import CostModel  # noqa: E402
from planner.instance.cluster_file import instance_ids, read_file, read_instance  # noqa: E402
from planner.make_plan import SEARCH_NAMES, make_plan  # noqa: E402
from planner.pareto import pareto_front  # noqa: E402
from planner.problem import Problem  # noqa: E402
from planner.replanning.migration import least_moved_bytes  # noqa: E402
from planner.replanning.replan import ReplanResult, replan  # noqa: E402
from planner.result import Result  # noqa: E402
from planner.search.helix_flow import segment_result  # noqa: E402
from planner.stop import Deadline, never  # noqa: E402
from swarm.plan import Plan  # noqa: E402

SOURCE = FOLDER / "instances.json"
REPLAN_SECONDS = 0.4  # after which the full search takes the best plan that it has
PEERS = (16, 32, 64, 128, 256, 512, 1024)
Made = TypeVar("Made")
HEAD = """# Planner: measured

`python benchmarks/planner/run.py` writes this file; seconds are CPU seconds of one thread, taken
while other work ran on the machine's two cores. Values are the oracle's (`reference.py`), which
checks every plan. "gap" is bound / value - 1 (value / bound - 1 for latency).
"""

WHY = (
    "Throughput. The quick bound sums the best share of every kind of device over all pipelines,"
    " though few pipelines share a pool where KV memory limits the batch. The counted bound bounds"
    " one pipeline over every count of devices, with whole layers, the ends, hops and ways between"
    " regions, and takes the best division of the pool: the large gaps were the bound's fault, and"
    " all but the two below fall to 8 % or less.",
    "helix-hetero-42-70b (64 devices): classes that differ in links only are taken as one (every T4"
    " as if four stood on its machine, every L4 as if two), for 23,205 counts in place of millions,"
    " and the work ends at flows told apart by 3 %; twice the work gives 3,667. One pipeline over"
    " all devices is bounded by 3,382. The plan was at fault, too: dealing all devices of one speed"
    " anew took it from 2,551 to 2,970; an earlier version's long search found 3,046.",
    "petals-real-14-bloom: weights leave room for 4 sequences with one device a stage, and no 5 fit"
    " then; the bound allows more, for groups over machines whose memory is pooled to the last"
    " byte, paid by a price on their all-reduces of 20 ms and more. Each price alone admits another"
    " fractional mix of such groups; no price excludes all. Which side is at fault is not known.",
    "Volunteers (growth, below): more counts of unlike devices than can be told apart, so that only"
    " the quick bound is computed.",
    "Latency: no published instance; of the volunteers each machine has other links, and the bound"
    " gives every one its best link out, which no one ring has.",
)

LEAST = (
    "Least GB: for as many pipelines as the new plan has, every layer must be held so many times;"
    " copies whose holders have left must be loaded by someone, however the others are used. More"
    " is moved only where it pays: of the repairs within 5 % of the best value, net of loading over"
    " an hour, the one that moves least is taken, and a full search must gain 10 %."
)


def timed(call: Callable[[], Made]) -> tuple[Made, float]:
    """The call's result and its CPU seconds."""
    begun = time.process_time()
    return call(), time.process_time() - begun


def solved(name: str, objective: str, search: str) -> tuple[Result, float]:
    """One search on one instance, its value checked by the oracle."""
    problem = read_instance(read_file(SOURCE), name, objective).problem
    result, seconds = timed(lambda: make_plan(problem, never, search=search))
    if result.plan.pipelines:
        judge = reference.Evaluator(*reference.load(SOURCE, name))
        plan = result.plan.to_json()
        assert judge.problems(plan) == [], (name, search)
        report = judge.report(plan)
        key = "best_latency_s" if objective == "latency" else "tokens_per_s"
        assert abs(result.value / report[key] - 1) < 1e-6, (name, search)
    return result, seconds


def instance_table(objective: str) -> list[str]:
    """Value, bound, gap, seconds and the baselines' values for every instance."""
    unit = "s" if objective == "latency" else "tok/s"
    lines = [
        f"| instance | ours ({unit}) | bound | gap | s | hexgen | its s | symmetric | petals-like |"
        " parallax-like | never below |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    gaps = []
    for name in instance_ids(read_file(SOURCE)):
        found = {search: solved(name, objective, search) for search in SEARCH_NAMES}
        ours, seconds = found["swarm"]
        if not ours.plan.pipelines:
            lines.append(f"| {name} | INFEASIBLE: {ours.reasons[0]} | | | | | | | | | |")
            continue
        gaps.append(ours.gap)
        values = [found[search][0].value for search in SEARCH_NAMES[1:]]
        below = [v for v in values if v and (v < ours.value if unit == "s" else v > ours.value)]
        cells = [f"{v:.4g}" if v else "none" for v in values]
        lines.append(
            f"| {name} | {ours.value:.5g} | {ours.bound.value:.5g} | {ours.gap:.1%} |"
            f" {seconds:.2f} | {cells[0]} | {found['hexgen'][1]:.2f} | {' | '.join(cells[1:])} |"
            f" {'yes' if not below else 'NO'} |"
        )
        say(lines[-1])
    lines += ["", f"Median gap {statistics.median(gaps):.1%} over {len(gaps)} feasible instances."]
    return lines


def flow_table() -> list[str]:
    """Helix capacity mode against the artifact's own solver."""
    lines = [
        "| instance | our flow (tok/s) | bound | gap | s | Helix artifact | its bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in instance_ids(read_file(SOURCE)):
        instance = read_instance(read_file(SOURCE), name)
        if not instance.capacity:
            continue
        runs = [timed(lambda i=instance: segment_result(i, never)) for _ in range(5)]
        result, seconds = runs[0][0], statistics.median(s for _, s in runs)
        published = instance.fields.values.get("published", {})
        theirs = published.get("milp_flow_tok_s") or published.get("optimal_flow_tok_s") or "-"
        lines.append(
            f"| {name} | {result.value:.6g} | {result.bound.value:.6g} | {result.gap:.1%} |"
            f" {seconds:.2f} | {theirs} | {published.get('milp_bound', '-')} |"
        )
    return lines


def growth_table() -> list[str]:
    """Synthetic volunteers: seconds and memory by number of peers."""
    lines = ["| peers | objective | s | value | gap | pipelines | MiB so far |"]
    lines.append("|---|---|---|---|---|---|---|")
    curves: dict[str, list[tuple[float, float]]] = {"latency": [], "throughput": []}
    for peers in PEERS:
        path = FOLDER / f"volunteers-{peers}.json"
        name = write_volunteers(path, SOURCE, peers)
        for objective, curve in curves.items():
            problem = read_instance(read_file(path), name, objective).problem
            result, seconds = timed(lambda p=problem: make_plan(p, never))
            curve.append((peers, seconds))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            lines.append(
                f"| {peers} | {objective} | {seconds:.1f} | {result.value:.4g} |"
                f" {result.gap:.0%} | {len(result.plan.pipelines)} | {memory:.0f} |"
            )
            say(lines[-1])
        path.unlink()
    chart = curves_chart("Planning time", ("peers", "CPU seconds"), curves)
    (FOLDER / "growth.svg").write_text(chart)
    return lines


def replan_table() -> list[str]:
    """Four GPUs leave the half-price pool: repair alone, and with a full search after it."""
    name = "hexgen-churn-4-offline"
    gone = [f"is-0/{index}" for index in (7, 6, 5, 4)]
    lines = [
        "| objective | full search too | s | value before | after | GB moved | least GB |"
        " pipelines | repaired |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for objective in ("latency", "throughput"):
        before = read_instance(read_file(SOURCE), name, objective).problem
        after = read_instance(
            changed_file(read_file(SOURCE), name, gone, []), name, objective
        ).problem
        current = best_plan(before, never)
        for search in (False, True):
            made, seconds = timed(lambda a=after, c=current, s=search: replanned(a, c, s))
            value = value_of(CostModel(before), current, objective)
            new = value_of(CostModel(after), made.plan, objective)
            count = len(made.plan.pipelines)
            least = least_moved_bytes(after, current, count) / 1e9
            lines.append(
                f"| {objective} | {'yes' if search else 'no'} | {seconds:.2f} | {value:.5g} |"
                f" {new:.5g} | {made.moved_bytes / 1e9:.1f} | {least:.1f} |"
                f" {len(current.pipelines)} to {count} | {'yes' if made.repaired else 'no'} |"
            )
    return [*lines, "", LEAST]


def replanned(after: Problem, current: Plan, search: bool) -> ReplanResult:
    """The next plan; the full search, if any, is stopped in time for the gate of one second."""
    begun = time.process_time()
    return replan(
        after, current, Deadline(time.process_time, begun + REPLAN_SECONDS), search=search
    )


def value_of(cost: CostModel, plan: object, objective: str) -> float:
    """Seconds of a request, or tokens per second."""
    return cost.best_latency(plan) if objective == "latency" else cost.total_throughput(plan)


def pictures() -> None:
    """Layers by device of the case study, and its Pareto front."""
    problem = read_instance(read_file(SOURCE), "hexgen-case-study", "throughput").problem
    plan = best_plan(problem, never)
    labels = {device.id: f"{device.id} {device.kind}" for device in problem.devices}
    (FOLDER / "case_study_layers.svg").write_text(layers_chart(plan, labels))
    points = pareto_front(problem, never, 0)
    curve = [(point.latency_seconds, point.tokens_per_second) for point in points]
    axes = ("seconds of one request", "tokens/s")
    (FOLDER / "case_study_pareto.svg").write_text(curves_chart("Case study", axes, {"": curve}))


def case_study() -> list[str]:
    """The published 48/20/12 plan against ours, by the oracle."""
    judge = reference.Evaluator(*reference.load(SOURCE, "hexgen-case-study"))
    parts = ((0, 48, "a6000-0", 4), (48, 68, "a5000-0", 2), (68, 80, "a4000-0", 2))
    stages = [
        {
            "start": start,
            "end": end,
            "shards": [{"device": f"{m}/{i}", "kv": 8 // n, "mlp": 224 // n} for i in range(n)],
        }
        for start, end, m, n in parts
    ]
    report = judge.report({"pipelines": [{"stages": stages}]})
    return [
        f"Published 48/20/12 plan: {report['best_latency_s']:.4f} s per request,"
        f" {report['tokens_per_s']:.1f} tokens/s."
    ]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """Run everything, or the parts whose titles hold one of the words; write RESULTS.md."""
    why = [f"- {reason}" for reason in WHY]
    parts = [
        ("Helix capacity mode (median of 5)", flow_table),
        ("Latency: seconds of one request, reference mode", lambda: instance_table("latency")),
        (
            "Throughput: tokens/s at saturation, reference mode",
            lambda: instance_table("throughput"),
        ),
        ("Gaps above 10 % and what leaves them open", lambda: why),
        ("The case study's published plan", case_study),
        ("Growth with the number of peers", growth_table),
        ("Re-planning after four GPUs leave", replan_table),
        ("The paper's pools", lambda: compare(FOLDER).splitlines()),
        ("Which assumption of the paper's model decides", lambda: sensitivity(FOLDER)),
    ]
    pictures()
    known = sections() if words else {}
    for title, part in parts:
        if not words or any(word in title.lower() for word in words) or title not in known:
            say(title)
            known[title] = ["", *part(), ""]
        text = [HEAD, *(line for t, _ in parts if t in known for line in (f"## {t}", *known[t]))]
        (FOLDER / "RESULTS.md").write_text("\n".join(text))
    return 0


def sections() -> dict[str, list[str]]:
    """The parts of RESULTS.md as they are, by title."""
    path, found = FOLDER / "RESULTS.md", {}
    for block in path.read_text().split("\n## ")[1:] if path.exists() else []:
        title, *lines = block.split("\n")
        found[title] = lines
    return found


if __name__ == "__main__":
    sys.exit(main([word.lower() for word in sys.argv[1:]]))
