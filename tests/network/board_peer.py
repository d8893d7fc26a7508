"""A peer that has a board alone: shows its name on it, and prints whom it sees, a line a second."""

import asyncio
import json
import sys
from collections.abc import Sequence

from swarm.dht.bootstrap import KnownPeers
from swarm.errors import SwarmError
from swarm.network import Entry, hold_network
from swarm.p2p.address_book import AddressBook
from swarm.p2p.p2pd_process import Network
from swarm.records import Capability
from swarm.trust.identity import Identity

SWARM = "laboratory"
SHOWN_SECONDS = 8.0  # so that who is cut off is not seen for long


def say(kind: str, what: object) -> None:
    sys.stdout.write(json.dumps([kind, what]) + "\n")
    sys.stdout.flush()


async def live(name: str, host: str, invited: Sequence[str]) -> None:
    """Be there until killed."""
    identity = Identity.throwaway()
    book = AddressBook(None, SWARM, identity.peer)
    known = KnownPeers(tuple(invited), book, lambda line: say("line", line))
    network = Network(host=host, port=4001)
    async with hold_network(identity, network, SWARM, "", Entry(known=known)) as held:
        own = await held.daemon.addresses()
        say("address", own[0])
        bare = [each.partition("/p2p/")[0] for each in own]
        shown = Capability("", [], [], name, True, 0.0, name, addresses=bare)
        while True:
            try:
                await held.board.publish(shown, ttl_seconds=SHOWN_SECONDS)
                seen = await held.board.read(Capability)
                say("names", sorted(each.name for each in seen.values()))
            except SwarmError as error:
                say("trouble", str(error))
            await asyncio.sleep(1.0)


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1], sys.argv[2], sys.argv[3:]))
