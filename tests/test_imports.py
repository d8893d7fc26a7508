"""Imports point down: node -> planner -> swarm, client -> swarm; read from the syntax trees."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
PACKAGES = ("swarm", "planner", "node", "client")
MAY_IMPORT = {
    "swarm": {"swarm"},
    "planner": {"planner", "swarm"},
    "client": {"client", "swarm"},
    "node": {"node", "planner", "swarm"},
}
BOARD_FILES = {
    "swarm.dht.dht_protocol",
    "swarm.dht.replicas",
    "swarm.dht.bootstrap",
    "swarm.dht.dht_board",
    "swarm.dht.bounded_storage",
    "swarm.dht.record_validator",
}
NETWORK_FILES = {
    "swarm.dht.dht_protocol",
    "swarm.dht.replicas",
    "swarm.dht.dht_board",
    "swarm.p2p.libp2p_channel",
    "swarm.p2p.lobby",
    "swarm.p2p.p2p_daemon",
    "swarm.p2p.p2pd_process",
}
SEAMS = {"swarm.dht.board", "swarm.p2p.channel"}
KV_ACCOUNTING = {
    f"node.engine.kv_cache.{name}"
    for name in ("admission", "block_manager", "block_pool", "block_table", "prefix_cache")
}
NOT_FOR_THE_PLANNER = {"torch", "transformers", "hivemind", "asyncio", "socket"}
PLANNER_COMMANDS = {"planner.cli.commands"}
READS_ENVIRONMENT = {
    "node.network.relay_peer",  # the main of `swarm relay`
    "node.config",
    "node.main",
    "swarm.state_folder",
    "swarm.cli",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name with the module it comes from."""

    importer: str
    module: str  # as written; a relative import is made absolute
    name: str  # "" for `import module`
    at_run_time: bool  # not under `if TYPE_CHECKING`
    at_start: bool  # when the file is loaded, not when a function is called

    @property
    def dotted(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}" if self.name else self.module

    def __str__(self) -> str:
        return f"{self.importer} imports {self.dotted}"


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module of ours, by dotted name."""
    found: dict[str, ast.Module] = {}
    for package in PACKAGES:
        for path in sorted((HOME / package).rglob("*.py")):
            parts = path.relative_to(HOME).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import of ours."""
    return tuple(each for name, tree in trees().items() for each in imports_of(name, tree))


def imports_of(name: str, tree: ast.AST) -> Iterator[Import]:
    yield from _walk(name, tree, at_run_time=True, at_start=True)


def _walk(name: str, node: ast.AST, *, at_run_time: bool, at_start: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(name, alias.name, "", at_run_time, at_start)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name} has a relative import"
        for alias in node.names:
            yield Import(name, node.module or "", alias.name, at_run_time, at_start)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in ast.iter_child_nodes(node):
        yield from _walk(
            name,
            child,
            at_run_time=at_run_time and not checked,
            at_start=at_start and not is_function,
        )


def package_of(module: str) -> str:
    return module.partition(".")[0]


def target_of(each: Import) -> str | None:
    """The module of ours that an import loads."""
    if package_of(each.module) not in PACKAGES:
        return None
    return each.dotted if each.dotted in trees() else each.module


def arrows() -> dict[str, set[str]]:
    """Which modules of ours each one loads when it is loaded."""
    found: dict[str, set[str]] = {name: set() for name in trees()}
    for each in imports():
        target = target_of(each)
        if target and each.at_run_time and each.at_start:
            found[each.importer].add(target)
    return found


def reached_from(start: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(arrows.get(module, ()))
    return seen


def test_the_walk_sees_every_package() -> None:
    assert {package_of(name) for name in trees()} == set(PACKAGES)
    assert len(imports()) > 200


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    ours = [each for each in imports() if package_of(each.importer) == package and each.at_run_time]
    upward = [
        str(each)
        for each in ours
        if package_of(each.module) in PACKAGES
        and package_of(each.module) not in MAY_IMPORT[package]
    ]
    assert upward == []


def test_imports_for_type_checkers_alone_stand_only_in_the_doors() -> None:
    hidden = {each.importer for each in imports() if not each.at_run_time and target_of(each)}
    assert hidden <= {"client", "swarm.client", "node.worker.compute_loop"}


def test_the_engine_knows_nothing_of_its_node() -> None:
    engine = [each for each in imports() if each.importer.startswith("node.engine")]
    known = [
        str(each)
        for each in engine
        if package_of(each.module) in PACKAGES
        and not each.module.startswith(("node.engine", "swarm"))
    ]
    assert engine
    assert known == []


def test_the_engine_speaks_to_no_board_and_no_channel() -> None:
    reached = set().union(
        *(reached_from(name, arrows()) for name in trees() if name.startswith("node.engine"))
    )
    assert reached.isdisjoint(BOARD_FILES | NETWORK_FILES | SEAMS)


def test_who_holds_which_block_is_decided_without_torch() -> None:
    loaded = set().union(*(reached_from(name, arrows()) for name in KV_ACCOUNTING))
    heavy = [
        str(each)
        for each in imports()
        if each.importer in loaded and package_of(each.module) in {"torch", "transformers"}
    ]
    assert loaded >= KV_ACCOUNTING
    assert heavy == []


def test_the_planner_has_no_network_no_torch_and_no_clock() -> None:
    outside = [
        str(each)
        for name in trees()
        if package_of(name) == "planner" and name not in PLANNER_COMMANDS
        for each in imports()
        if each.importer == name and package_of(each.module) in {*NOT_FOR_THE_PLANNER, "time"}
    ]
    assert outside == []


def test_nothing_that_the_planner_loads_needs_torch_or_a_network() -> None:
    loaded = set().union(
        *(reached_from(n, arrows()) for n in trees() if package_of(n) == "planner")
    )
    heavy = [
        str(each)
        for each in imports()
        if each.importer in loaded - PLANNER_COMMANDS
        and package_of(each.module) in NOT_FOR_THE_PLANNER
    ]
    assert heavy == []


def test_only_board_files_know_the_dht() -> None:
    users = {each.importer for each in imports() if each.module.startswith("hivemind.dht")}
    assert users
    assert users <= BOARD_FILES


def test_only_network_files_know_hivemind_p2p() -> None:
    users = {each.importer for each in imports() if each.module.startswith("hivemind.p2p")}
    assert users
    assert users <= NETWORK_FILES


def test_nobody_uses_the_parts_of_hivemind_that_fork() -> None:
    forking = [
        str(each)
        for each in imports()
        if each.dotted == "hivemind"  # `import hivemind` offers everything
        or each.module == "hivemind"  # `from hivemind import DHT`
        or each.dotted in ("hivemind.dht.DHT", "hivemind.dht.dht.DHT")
        or each.module.startswith(("hivemind.moe", "hivemind.averaging", "hivemind.optim"))
        or each.name in ("MPFuture", "ForkProcess")
    ]
    assert forking == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = arrows()
    circles = [
        name
        for name in found
        if any(name in reached_from(target, found) for target in found[name] if target != name)
    ]
    assert circles == []


def test_only_main_config_and_doors_read_the_environment() -> None:
    readers = {name for name, tree in trees().items() if reads_environment(tree)}
    assert readers <= READS_ENVIRONMENT


def test_worker_processes_import_no_network() -> None:
    now = reached_from("node.worker.__main__", arrows())
    reached = now | reached_from("node.worker.shard", arrows())  # loaded after measuring
    assert "node.worker.shard" in reached
    assert reached.isdisjoint(BOARD_FILES | NETWORK_FILES)


def reads_environment(tree: ast.AST) -> bool:
    words = {"environ", "environb", "getenv", "getenvb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in words)
        or (isinstance(node, ast.ImportFrom) and any(a.name in words for a in node.names))
        for node in ast.walk(tree)
    )


FLOORS = {"planner": 18, "swarm": 24, "node": 14, "client": 16}  # files and folders at most


def subject_of(module: str) -> str:
    """The folder that a module is in, or the module where it stands on a package's first floor."""
    path = module.replace(".", "/")
    folder = module if (HOME / path).is_dir() else module.rpartition(".")[0]
    return module if folder in {*PACKAGES, "node.engine"} else folder


def test_no_two_folders_import_each_other_whatever_stands_between_them() -> None:
    subjects: dict[str, set[str]] = {}
    for module, loaded in arrows().items():
        of = subjects.setdefault(subject_of(module), set())
        of |= {subject_of(each) for each in loaded if each in trees()} - {subject_of(module)}
    circles = [
        (subject, other)
        for subject, others in subjects.items()
        for other in others
        if subject in reached_from(other, subjects)
    ]
    assert len(subjects) > 50
    assert circles == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_can_be_read_at_one_look(package: str) -> None:
    floor = [path.name for path in (HOME / package).iterdir()]
    shown = [name for name in floor if name not in {"__pycache__", "py.typed"}]
    assert len(shown) <= FLOORS[package], shown
