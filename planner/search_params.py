"""SearchParams: what a search may try and when it rests; for who wants to study or tune it.

Facts of physics, tolerances of arithmetic and limits of formats are no parameters: they stay with
the formulas that they belong to.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LocalSearchParams:
    """The local search over which groups of devices serve together (`search/local_search.py`)."""

    patience: int = 300  # tries without a gain before the search rests
    patience_per_pipeline: int = 40  # and more for each pipeline
    most_work: int = 8_000  # groups evaluated from one start, so that large pools end, too
    starts_kept: int = 2  # the best starting partitions are improved
    most_starts: int = 24  # numbers of pipelines that are tried to start from
    regrouping_gain: float = 1.05  # times the value, that even groups must reach to be started from
    near_seconds: float = 2e-3  # one way; farther devices never share a layer in this search
    even_sizes: tuple[int, ...] = (1, 2, 3, 4)  # sizes of even groups of devices of one type
    sweeps: int = 2  # over all pipelines, for even groups
    rows_on_tour: int = 64  # in the message by which the tour measures how near machines are
    most_stages_ordered: int = 24  # the stages of longer pipelines are left in the order found


@dataclass(frozen=True, slots=True)
class LatencyParams:
    """The search for the quickest pipeline (`search/latency_search.py`, `exact_latency.py`)."""

    few_devices: int = 8  # that exact search takes on, with groups of any size over any machines
    most_states: int = 256  # sets of devices that exact search takes on: 8 unlike devices
    few_states: int = 40  # for which groups may be of any size, too
    most_far_members: int = 5  # of a group over several machines, if there are more devices
    most_corrections: int = 40  # of tables by true seconds, before a chain is taken as it is
    most_local_states: int = 1500  # sets of devices, where groups stay within machines
    neighbourhoods: int = 3  # around the quickest machines, that exact search looks at
    neighbourhood_states: int = 82  # sets of devices in each of them
    neighbour_rows: int = 32  # in the message by which the nearest machines are told
    chains_kept: int = 2  # the best starting chains are improved
    nearly: float = 1.5  # times the best latency: further pipelines up to it are for latency, too
    many_left: int = 12  # devices for which further pipelines are dealt out rather than searched


@dataclass(frozen=True, slots=True)
class StageCountParams:
    """The search for pipelines of so many stages (`search/fixed_stage_count.py`)."""

    patience: int = 80  # tries without a gain
    starts: int = 16  # starting groups are taken from so many runs of machines
    starts_kept: int = 2  # the best of them are improved
    far_penalty: float = 1.0  # of a group over far machines, against cutting unevenly


@dataclass(frozen=True, slots=True)
class HexGenParams:
    """HexGen's genetic search (`hexgen/genetic_search.py`)."""

    population: int = 8
    generations: int = 120
    patience: int = 25  # generations without a gain
    degrees: tuple[int, ...] = (1, 2, 4, 8)  # of tensor parallelism, inside a machine
    most_states: int = 1500  # larger groups are not searched: they would not end in the paper
    most_devices_to_start: int = 64  # for which our search begins from it, too
    work_to_start: int = 50_000  # of inner searches, states times groups, in such a start


@dataclass(frozen=True, slots=True)
class ReplanParams:
    """When a new plan is worth its loading (`replanning/replan.py`, `repair.py`)."""

    worth_moving: float = 0.10  # share that a full search must gain, net of loading
    about_equal: float = 0.05  # of repairs this near in value the one that moves least is taken
    no_loss: float = 0.01  # share of the value given up, at most, for a pipeline more
    plan_life_seconds: float = 3600.0  # how long a plan is expected to serve
    short_life_seconds: float = 1800.0  # layers on peers that stay no longer want a second holder
    # Prices of loading one model's bytes, as shares of what a pipeline is worth at best.
    loading_prices: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)


@dataclass(frozen=True, slots=True)
class SearchParams:
    """All parameters of planning; `dataclasses.replace` changes some."""

    local: LocalSearchParams = field(default_factory=LocalSearchParams)
    latency: LatencyParams = field(default_factory=LatencyParams)
    stage_count: StageCountParams = field(default_factory=StageCountParams)
    hexgen: HexGenParams = field(default_factory=HexGenParams)
    replan: ReplanParams = field(default_factory=ReplanParams)


DEFAULT_PARAMS = SearchParams()
