"""A p2pd on a public host that is of no swarm: it only sees, as others do, who connects to it."""

import asyncio
import json
import sys
import time

from swarm.p2p.p2p_daemon import open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.trust.identity import Identity


async def main(port: str, *peers: str) -> None:
    """Be there until killed; prints a JSON line with its address, and when that was."""
    network = Network(host="0.0.0.0", port=int(port), initial_peers=peers)
    daemon = await open_p2p(Identity.throwaway(), network)
    words = {"address": (await daemon.addresses())[0], "at": time.monotonic()}
    print(json.dumps(words), flush=True)  # noqa: T201 (what the test reads)
    await daemon.ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
