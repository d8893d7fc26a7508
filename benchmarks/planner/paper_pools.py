"""The paper's comparison on its own pools: deadlines and rates at 99 % attainment, as ratios."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.best_plan import best_plan
from planner.cli.svg_charts import curves_chart
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen
from planner.hexgen.paper_cost import PaperRules
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem
from planner.search.baselines import BASELINES
from planner.search.group_pool import GroupPool
from planner.simulation.simulator import Request, Simulation, poisson_trace, request_seconds
from planner.stop import never
from swarm.plan import Pipeline, Plan

ATTAINMENT, REQUESTS, SEED = 0.99, 600, 0
LENGTHS = (32.0, 64.0, 128.0)
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
SCALES = (8.0, 12.0, 20.0, 30.0, 50.0, 90.0)
POOLS = {
    "homogeneous": "hexgen-homog-16a100",
    "full price": "hexgen-hetero-full-58",
    "half price": "hexgen-hetero-half-30",
}
BY_RATE = "SLO attainment in the paper's model, deadline scale 8"
BY_SCALE = "SLO attainment in the paper's model, 4 requests/s"
Seconds = Callable[[Pipeline, Request], float]


@dataclass(frozen=True)
class Setup:
    """A plan on a pool, and how it serves."""

    name: str
    problem: Problem
    plan: Plan
    batching: bool
    alone: Seconds
    lengths: tuple[float, ...] = LENGTHS

    def seconds(self, rate: float) -> list[tuple[Request, float]]:
        """Every request of a Poisson trace and how long it took."""
        trace = poisson_trace(rate, REQUESTS, self.lengths, self.lengths, SEED)
        cost = CostModel(self.problem)
        run = Simulation(cost, self.plan, batching=self.batching, alone=self.alone).run(trace)
        return [(one.request, one.seconds) for one in run.served]


class Base:
    """Deadlines are multiples of a request's seconds alone on the 16 A100s."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.known: dict[tuple[float, float], float] = {}
        standing = Request(0.0, 75, 75)
        self.best = min(setup.plan.pipelines, key=lambda p: setup.alone(p, standing))

    def seconds(self, request: Request) -> float:
        key = (request.input_tokens, request.output_tokens)
        if key not in self.known:
            self.known[key] = self.setup.alone(self.best, request)
        return self.known[key]

    def least_scale(self, setup: Setup, rate: float) -> float:
        """The smallest deadline scale that 99 % of requests meet."""
        scales = sorted(taken / self.seconds(r) for r, taken in setup.seconds(rate))
        return scales[int(ATTAINMENT * len(scales)) - 1]

    def peak_rate(self, setup: Setup, scale: float) -> float:
        """The highest rate at which 99 % meet the deadline."""
        low, high = 0.0, 400.0
        for _ in range(13):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self.least_scale(setup, middle) <= scale else (low, middle)
            )
        return low


def best_ratios(
    base: Base,
    left: Setup,
    right: Setup,
    rates: Sequence[float] = RATES,
    scales: Sequence[float] = SCALES,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Deadline of the right over that of the left at the best rate; rate likewise; and where."""
    deadlines = [(base.least_scale(right, r) / base.least_scale(left, r), r) for r in rates]
    peaks = [(base.peak_rate(left, s) / max(1e-3, base.peak_rate(right, s)), s) for s in scales]
    return max(deadlines), max(peaks)


def paper_alone(problem: Problem, *, messages: float = 4.0, batch: float = 1.0) -> Seconds:
    """Seconds of a request by the paper's formulas."""
    known: dict[tuple[Pipeline, float, float], float] = {}

    def alone(pipeline: Pipeline, request: Request) -> float:
        key = (pipeline, request.input_tokens, request.output_tokens)
        if key not in known:
            load = replace(
                problem.workload,
                input_tokens=request.input_tokens,
                output_tokens=request.output_tokens,
            )
            rules = PaperRules(replace(problem, workload=load), messages=messages, batch=batch)
            known[key] = rules.latency(pipeline)
        return known[key]

    return alone


def reference_alone(problem: Problem) -> Seconds:
    """Seconds of a request by the reference model."""
    return lambda pipeline, request: request_seconds(problem, pipeline, request)


def setups(folder: Path) -> dict[str, Setup]:
    """All combinations of pool, search and way of serving that the table compares."""
    file, made = read_file(folder / "instances.json"), {}
    for pool_name, instance in POOLS.items():
        problem = read_instance(file, instance, "throughput").problem
        pool = GroupPool(problem, CostModel(problem))
        rules, alone = PaperRules(problem), paper_alone(problem)
        hexgen = HexGen(pool, "throughput", 0, rules).plan(never)
        symmetric = _fitting(rules, BASELINES["symmetric"](pool, "throughput"))
        quick_symmetric = _fitting(rules, BASELINES["symmetric"](pool, "latency"))
        best = max((symmetric, quick_symmetric), key=lambda p: rules.plan_value(p, "throughput"))
        petals = _fitting(rules, BASELINES["petals"](pool, "throughput"))
        ours = best_plan(problem, never)
        reference = reference_alone(problem)
        for kind, plan, batching, how in (
            ("hexgen, paper model", hexgen, False, alone),
            ("symmetric, paper model", best, False, alone),
            ("petals-like, paper model", petals, False, alone),
            ("hexgen, one at a time", hexgen, False, reference),
            ("hexgen, continuous batching", hexgen, True, reference),
            ("ours, continuous batching", ours, True, reference),
        ):
            name = f"{pool_name}: {kind}"
            made[name] = Setup(name, problem, plan, batching, how)
    return made


def _fitting(rules: PaperRules, plan: Plan) -> Plan:
    return Plan(tuple(p for p in plan.pipelines if rules.fits(p)))


COMPARED = (
    ("full price: hexgen, paper model", "homogeneous: hexgen, paper model", "2.3x / 4x"),
    ("half price: hexgen, paper model", "homogeneous: hexgen, paper model", "about equal"),
    ("full price: hexgen, paper model", "full price: symmetric, paper model", "1.8x / 2x"),
    ("half price: hexgen, paper model", "half price: petals-like, paper model", "3.5x / 10x"),
    ("full price: hexgen, one at a time", "homogeneous: hexgen, one at a time", "-"),
    ("full price: hexgen, continuous batching", "homogeneous: hexgen, continuous batching", "-"),
    ("full price: ours, continuous batching", "full price: hexgen, continuous batching", "-"),
    ("full price: ours, continuous batching", "homogeneous: ours, continuous batching", "-"),
)


READING = (
    "How to read it: full price against homogeneous comes out at 2.2x in deadline (published up to"
    " 2.3x) and at 1.35x in rate (published up to 4x). In the paper's model a pool's rate is the"
    " sum of 1 / latency over replicas: 10 replicas here against 4 of 4 A100s each. Which"
    " assumption decides is measured in the next section; it could not be checked without the"
    " paper's curves. Half price is"
    " not on par here (0.45x): 4 replicas of slower cards. Against symmetric and Petals-like"
    " placements the ratios are above the published ones at the best point, where the loser is"
    " saturated and a ratio of deadlines has no limit.",
    "",
    "With continuous batching the order of the pools changes: nearly all rates up to 10/s are met"
    " by any plan (rates are searched up to 400/s only), and a plan for tokens per second answers a"
    " lone request later than one for latency: 0.32x is the price of the wrong objective, not of"
    " the search.",
)


def compare(folder: Path) -> str:
    """Markdown: the best ratio of deadlines over rates, and of rates over deadline scales."""
    made = setups(folder)
    lines = [
        "| left | against | deadline lower by (best over rates) | rate higher by (best over scales)"
        " | published |",
        "|---|---|---|---|---|",
    ]
    for left, right, published in COMPARED:
        if not (made[left].plan.pipelines and made[right].plan.pipelines):
            lines.append(f"| {left} | {right} | no plan fits | - | {published} |")
            continue
        kind = "paper model" if "paper model" in left else "one at a time"
        base = Base(made[f"homogeneous: hexgen, {kind}"])
        (deadline, at), (rate, scale) = best_ratios(base, made[left], made[right])
        lines.append(
            f"| {left} | {right} | {deadline:.2f}x at {at:g}/s | {rate:.2f}x at scale"
            f" {scale:g} | {published} |"
        )
    _charts(folder, made)
    replicas = ", ".join(
        f"{name}: {len(made[f'{name}: hexgen, paper model'].plan.pipelines)}" for name in POOLS
    )
    found = f"Replicas found by HexGen in paper mode: {replicas}."
    return "\n".join([*lines, "", found, "", *READING])


def _charts(folder: Path, made: dict[str, Setup]) -> None:
    base = Base(made["homogeneous: hexgen, paper model"])
    names = [f"{pool}: hexgen, paper model" for pool in POOLS]
    by_rate = {
        name: [(rate, _share(base, made[name], rate, 8.0)) for rate in RATES] for name in names
    }
    by_scale = {
        name: [(scale, _share(base, made[name], 4.0, scale)) for scale in (1, 2, 4, *SCALES)]
        for name in names
    }
    (folder / "attainment_by_rate.svg").write_text(
        curves_chart(BY_RATE, ("requests/s", "requests in time"), by_rate, shares=True)
    )
    (folder / "attainment_by_deadline.svg").write_text(
        curves_chart(BY_SCALE, ("deadline scale", "requests in time"), by_scale, shares=True)
    )


def _share(base: Base, setup: Setup, rate: float, scale: float) -> float:
    done = setup.seconds(rate)
    return sum(taken <= scale * base.seconds(r) for r, taken in done) / len(done)


if __name__ == "__main__":
    print(compare(Path(__file__).parent))
