"""The door for scripts: `from swarm import client` is the same object as `import client`."""

import sys
from typing import TYPE_CHECKING

from swarm.doors import open_room

if TYPE_CHECKING:
    from client import *  # noqa: F403 - so that type checkers see through the door

sys.modules[__name__] = open_room("client")
