"""The port of the last time: whoever comes back is found where invites and address books say."""

import logging
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from swarm.p2p.addresses import family_of
from swarm.state_folder import write_private

PORT_FILE = "port"  # in a node's folder
LEAST_PORT = 1024  # those below are not for everybody
DIGITS = 5

logger = logging.getLogger(__name__)


def last_port(folder: Path, hosts: Iterable[str]) -> int:
    """The port that this node listened on before, if it is free at these addresses; else 0."""
    try:
        text = (folder / PORT_FILE).read_bytes()[: DIGITS + 1].strip()
    except OSError:
        return 0
    port = int(text) if text.isdigit() and len(text) <= DIGITS else 0
    return port if LEAST_PORT <= port < 65536 and _is_free(port, hosts) else 0


def keep_port(folder: Path, port: int) -> None:
    """Remember it for the next time; a full disk costs old invites, not the node."""
    try:
        write_private(folder / PORT_FILE, str(port).encode())
    except OSError as error:
        logger.info("the port is not kept: %s", error)


def _is_free(port: int, hosts: Iterable[str]) -> bool:
    with ExitStack() as held:
        for host in hosts:
            try:
                held.enter_context(socket.create_server((host, port), family=family_of(host)))
            except OSError:
                return False
    return True
