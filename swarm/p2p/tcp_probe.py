"""tcp_problem: why nothing listens at a multiaddr, in a word; asked before p2pd dials it.

p2pd takes up to a minute to give an address up, says little of the cause, and then refuses to dial
the peer for a while (libp2p's backoff). A connection that is opened and closed costs nothing of it.
"""

import asyncio
import errno
import re
import socket
from contextlib import suppress

PROBE_SECONDS = 4.0  # a lost first packet is sent again after one
WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "no way to that host",
    errno.ENETUNREACH: "no way to that network",
}
_TCP = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d{1,5})(?:/.*)?")


async def tcp_problem(multiaddr: str, seconds: float = PROBE_SECONDS) -> str:
    """Why no TCP connection comes about; "" if one does, or if the address is not of that kind.

    Of an address through a relay it is the relay that is asked.
    """
    found = _TCP.fullmatch(multiaddr)
    if found is None or int(found[2]) > 65535:
        return ""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(found[1], int(found[2]))
    except TimeoutError:
        return "no answer"
    except socket.gaierror:
        return "no such name"
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        return WORDS.get(number or 0, str(getattr(error, "strerror", None) or error).lower())
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ""
