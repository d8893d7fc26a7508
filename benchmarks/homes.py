"""Starts of two homes behind kernel NATs, counted: `python -m benchmarks.homes [--starts 20]`.

As root, in the laboratory of `tests/network`: some public hosts, one of them the relay, stay up;
each start brings two new peers, without a model, in two new homes. Where the routers keep ports
both have to be connected directly within 10 s of both being ready; where they choose them at random
they have to stay relayed after every try, and to hear each other.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from swarm.hardware import PUNCHED, RELAYED
from tests.network.homes import Ports
from tests.network.laboratory import Laboratory
from tests.network.town import Light, Town, Unsaid, Words, town_in

GATE_SECONDS = 10.0  # from both being ready to a direct connection
LATE_SECONDS = 60.0  # after which a start is a miss without a time
READY_SECONDS = 240.0  # on a machine that is busy with other things
Pair = tuple[Light, Light]


@dataclass(frozen=True, slots=True)
class Start:
    """How one start went; times are seconds."""

    number: int
    ready: float  # from the start of both processes to a working relay of both
    seconds: float  # from then to what was wanted; infinite if it did not come
    said: dict[str, list[Words]]  # by both peers

    def is_good(self, limit: float) -> bool:
        """Whether it came in time."""
        return self.seconds <= limit

    def __str__(self) -> str:
        return f"start {self.number}: ready after {self.ready:.1f} s, then {self.seconds:.1f} s"


def punched_at(pair: Pair) -> float:
    """When both are connected directly; raises Unsaid."""
    one, other = pair
    ways = (one, other), (other, one)
    at: list[float] = [each.kind_of(far, PUNCHED, LATE_SECONDS)["at"] for each, far in ways]
    return max(at)


def relayed_at(pair: Pair) -> float:
    """When both hear each other through a relay after every try of another way; raises Unsaid."""
    trying = min(pair, key=lambda each: each.peer)
    far = pair[pair[0] is trying]
    trying.until(lambda words: words.get("tried") == far.name, LATE_SECONDS)
    now = time.monotonic()
    ways = (trying, far), (far, trying)
    at: list[float] = [each.hears(other, since=now)["at"] for each, other in ways]
    if kinds := {each.last_kind_of(other) for each, other in ways} - {RELAYED}:
        raise Unsaid(f"connected as {kinds}")
    return max(at)


def start(town: Town, number: int, ports: Ports, wanted: Callable[[Pair], float]) -> Start:
    """Start two peers in two new homes, and end them."""
    begun = time.monotonic()
    pair = town.at_home(town.home(ports)), town.at_home(town.home(ports))
    ready = float("inf")
    seconds = float("inf")
    try:
        ready = max(each.has_relays(1, READY_SECONDS)["at"] for each in pair)
        seconds = max(0.0, wanted(pair) - ready)
    except Unsaid as error:
        print(f"start {number} misses: {error}", flush=True)
    finally:
        for each in pair:
            each.kill()
    return Start(number, ready - begun, seconds, {each.name: each.said for each in pair})


def main() -> None:
    """Count, and print each start as it ends."""
    parser = argparse.ArgumentParser(description="Starts of two homes behind routers, counted.")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--publics", type=int, default=6, help="public hosts")
    parser.add_argument("--ports", choices=[each.name for each in Ports], default=Ports.KEPT.name)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    ports = Ports[given.ports]
    wanted, limit = (punched_at, GATE_SECONDS) if ports is Ports.KEPT else (relayed_at, 3600.0)
    starts = []
    with Laboratory() as lab, town_in(lab) as town:
        town.settle(given.publics)
        for number in range(1, given.starts + 1):
            starts.append(start(town, number, ports, wanted))
            print(starts[-1], flush=True)
    good = [each for each in starts if each.is_good(limit)]
    middle = median(each.seconds for each in starts)
    print(f"{len(good)} of {len(starts)}; median {middle:.1f} s", flush=True)
    if given.json:
        rows = [asdict(each) for each in starts]
        given.json.write_text(json.dumps({"ports": ports.name, "starts": rows}) + "\n")


if __name__ == "__main__":
    main()
