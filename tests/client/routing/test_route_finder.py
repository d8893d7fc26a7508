"""When a client reads the plan again: for newcomers, and for who is back with another stage."""

import asyncio

from client.routing.route import Need, Place
from client.routing.route_finder import PLACES_SECONDS, RouteFinder
from swarm.records import Advert, Capability, Member, StageAdvert
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.client.scripted import LAYERS, SPEC
from tests.client.skipping import run_skipping

NEED = Need(SPEC.digest, LAYERS, 100)
ANNA, BERT = peer_named("anna"), peer_named("bert")


class Planned:
    """A swarm whose plan and adverts a test changes, and a client that counts its reads."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.places = {(ANNA, 0, LAYERS)}
        self.reads = 0
        board = self.world.board(peer_named("client"))
        self.route_finder = RouteFinder(board, SPEC, places=self._read)

    async def _read(self) -> frozenset[Place]:
        self.reads += 1
        return frozenset(self.places)

    async def serve(self, peer: str, *spans: tuple[int, int], seconds: float = 0.01) -> None:
        """Advertise stages over these layers."""
        stages = [StageAdvert(a, b, [Member(peer, 0, 2, 1)], seconds, 10_000, 0) for a, b in spans]
        board = self.world.board(peer)
        await board.publish(Advert(SPEC.digest, stages, 1))
        await board.publish(Capability(SPEC.digest, [], [], "host", True, 0.0))

    async def leaders(self) -> set[str]:
        """Who gets the sessions now."""
        await asyncio.sleep(PLACES_SECONDS + 0.1)
        routes = [await self.route_finder.find(NEED, fresh=True) for _ in range(20)]
        return {route.leaders[0] for route in routes}


def test_a_peer_that_left_and_is_planned_again_gets_sessions_within_seconds() -> None:
    async def story() -> None:
        swarm = Planned()
        await swarm.serve(ANNA, (0, LAYERS))
        await swarm.serve(BERT, (0, LAYERS))
        swarm.places.add((BERT, 0, LAYERS))
        assert await swarm.leaders() == {ANNA, BERT}
        await swarm.serve(BERT)  # lost; a plan without it follows
        await swarm.serve(peer_named("newcomer"), (0, LAYERS), seconds=9.0)
        swarm.places.remove((BERT, 0, LAYERS))
        assert await swarm.leaders() == {ANNA}
        await swarm.serve(BERT, (0, LAYERS))
        swarm.places.add((BERT, 0, LAYERS))
        assert await swarm.leaders() == {ANNA, BERT}

    run_skipping(story())


def test_who_changes_his_stages_all_the_time_does_not_make_a_client_read_the_plan_each_time() -> (
    None
):
    async def story() -> None:
        swarm = Planned()
        await swarm.serve(ANNA, (0, LAYERS))
        for number in range(20):
            await swarm.serve(BERT, (0, 1 + number % 5))
            await asyncio.sleep(0.3)
            await swarm.route_finder.find(NEED, fresh=True)
        assert swarm.reads <= 3

    run_skipping(story())


def test_what_is_served_beside_the_plan_is_looked_up_once() -> None:
    async def story() -> None:
        swarm = Planned()
        await swarm.serve(ANNA, (0, LAYERS))
        await swarm.serve(BERT, (0, LAYERS))
        for _ in range(5):
            assert await swarm.leaders() == {ANNA}
        assert swarm.reads == 1

    run_skipping(story())
