"""The door for scripts: `from swarm import client` is the same object as `import client`.

Where a script or folder of the caller has that name, `import client` stays theirs.
"""

import sys
from typing import TYPE_CHECKING

from swarm.commands.entry_points import import_package_privately

if TYPE_CHECKING:
    from client import *  # noqa: F403 - so that type checkers see through the door

sys.modules[__name__] = import_package_privately("client")
