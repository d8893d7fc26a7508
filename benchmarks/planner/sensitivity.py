"""Which assumption decides: the full price pool against 16 A100s, one assumption changed at a time.

python benchmarks/planner/sensitivity.py        prints the table (about a minute)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paper_pools import LENGTHS, POOLS, RATES, SCALES, Base, Setup, best_ratios, paper_alone

from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen
from planner.hexgen.paper_cost import PaperRules
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem
from planner.search.device_group import even_shards
from planner.search.group_pool import GroupPool
from planner.simulation.simulator import Request
from swarm.plan import Pipeline, Plan, Stage

GENERATIONS = 40  # of a search repeated for one row
DEADLINE_PUBLISHED, RATE_PUBLISHED = 2.3, 4.0
SLOWER = (1.25, 1.5, 2.0, 2.5, 3.0, 3.5)
FINE_RATES = tuple(1.0 + 0.25 * step for step in range(13))
TIGHT_SCALES = (1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Assumed:
    """One row: what is assumed of the paper's model, the A100 baseline, and the sweep."""

    name: str
    messages: float = 4.0
    batch: float = 1.0
    lengths: tuple[float, ...] = LENGTHS
    slower: float = 1.0  # A100 requests, than the formulas say
    degree: int = 0  # tensor-parallel degree of every A100 replica; 0 lets HexGen choose
    rates: Sequence[float] = RATES
    scales: Sequence[float] = SCALES


ASSUMED = (
    Assumed("as in the table above"),
    Assumed("A100 baseline: 2 replicas of TP8 (one a machine)", degree=8),
    Assumed("A100 baseline: 1 replica of TP8 x PP2", degree=16),
    Assumed("all-reduce constant 2 instead of 4, searched anew", messages=2.0),
    Assumed("all-reduce constant 8 instead of 4, searched anew", messages=8.0),
    Assumed("8 requests served as one, searched anew", batch=8.0),
    Assumed("all prompts and outputs of 32 tokens", lengths=(32.0,)),
    Assumed("all prompts and outputs of 128 tokens", lengths=(128.0,)),
    Assumed("rates from 1 to 4 in steps of 0.25/s", rates=FINE_RATES),
    Assumed("deadline scales from 1.5 to 6", scales=TIGHT_SCALES),
    *(Assumed(f"A100 requests {factor:g} times as long", slower=factor) for factor in SLOWER),
)


class Pools:
    """The two pools, and the plans found on them for each way to count."""

    def __init__(self, folder: Path) -> None:
        file = read_file(folder / "instances.json")
        self.problems = {
            name: read_instance(file, POOLS[name], "throughput").problem
            for name in ("homogeneous", "full price")
        }
        self.plans: dict[tuple[str, float, float], Plan] = {}

    def plan(self, name: str, assumed: Assumed) -> Plan:
        """HexGen's plan by the paper's formulas as assumed; remembered."""
        key = (name, assumed.messages, assumed.batch)
        if key not in self.plans:
            problem = self.problems[name]
            rules = PaperRules(problem, messages=assumed.messages, batch=assumed.batch)
            pool = GroupPool(problem, CostModel(problem))
            generations = iter(range(GENERATIONS))
            search = HexGen(pool, "throughput", 0, rules)
            self.plans[key] = search.plan(lambda best: next(generations, None) is None)
        return self.plans[key]

    def setup(self, name: str, assumed: Assumed) -> Setup:
        """The pool as that row serves on it."""
        problem = self.problems[name]
        plan = self.plan(name, assumed)
        alone = paper_alone(problem, messages=assumed.messages, batch=assumed.batch)
        if name == "homogeneous":
            plan = replicas(problem, assumed.degree) if assumed.degree else plan

            def slowed(pipeline: Pipeline, request: Request) -> float:
                seconds: float = alone(pipeline, request)
                return assumed.slower * seconds

            return Setup(name, problem, plan, False, slowed, assumed.lengths)
        return Setup(name, problem, plan, False, alone, assumed.lengths)


def replicas(problem: Problem, degree: int) -> Plan:
    """A replica on every so many devices, 8 in each of its stages."""
    layers, members = problem.model.layers, range(len(problem.devices))
    groups = [even_shards(problem, members[at : at + 8]) for at in members[::8]]
    stages = degree // 8
    made = []
    for at in range(0, len(groups), stages):
        parts = [
            Stage(layers * i // stages, layers * (i + 1) // stages, g)
            for i, g in enumerate(groups[at : at + stages])
        ]
        made.append(Pipeline(tuple(parts)))
    return Plan(tuple(made))


def sensitivity(folder: Path) -> list[str]:
    """Markdown: both ratios for every row, and what it takes to reach the published ones."""
    pools = Pools(folder)
    lines = [
        "| assumption changed | A100 replicas | full price replicas | deadline lower by |"
        " rate higher by |",
        "|---|---|---|---|---|",
    ]
    reached: dict[float, list[str]] = {DEADLINE_PUBLISHED: [], RATE_PUBLISHED: []}
    for assumed in ASSUMED:
        home, full = (pools.setup(name, assumed) for name in ("homogeneous", "full price"))
        (deadline, at), (rate, scale) = best_ratios(
            Base(home), full, home, assumed.rates, assumed.scales
        )
        lines.append(
            f"| {assumed.name} | {len(home.plan.pipelines)} | {len(full.plan.pipelines)} |"
            f" {deadline:.2f}x at {at:g}/s | {rate:.2f}x at scale {scale:g} |"
        )
        for value, published in ((deadline, DEADLINE_PUBLISHED), (rate, RATE_PUBLISHED)):
            if value >= published:
                reached[published].append(assumed.name)
    return [*lines, "", *_conclusion(reached)]


def _conclusion(reached: dict[float, list[str]]) -> list[str]:
    """Which rows reach what was published, and how to read that."""
    names = {DEADLINE_PUBLISHED: "deadline", RATE_PUBLISHED: "rate"}
    said = [
        f"The published {what} ratio of {published:g}x is reached or passed by:"
        f" {'; '.join(reached[published]) or 'no row'}."
        for published, what in names.items()
    ]
    return [*said, "", READING]


READING = (
    "Where the A100s saturate, a ratio of deadlines has no limit: between 2/s and 2.5/s it passes"
    " 2.3x with no assumption changed, so which rates are compared decides it. The ratio of rates"
    " tends to the ratio of the sums of 1 / latency as deadlines grow, and no constant of the"
    " formulas, length or scale takes it to 4x: only the A100 baseline does. Two replicas of TP8"
    " instead of four of TP4 give most of it; A100 requests about twice as long as the formulas"
    " say, or all 16 A100s as one replica, pass it."
)


if __name__ == "__main__":
    print("\n".join(sensitivity(Path(__file__).parent)))
