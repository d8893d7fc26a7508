"""Hidden torch: a process that only asks a swarm reads models and tokenizers without it.

transformers imports torch wherever it is installed: seconds of a core, and 200 MB, before a command
that needs a tokenizer has begun. It offers tokenizers and configs without torch, too, and says at
length that it has found none.
"""

import logging
import sys
from types import ModuleType
from typing import cast

ASKING = frozenset({"generate", "chat", "serve"})  # the commands that need a tokenizer
LAMENT = "PyTorch was not found"


def hide_torch() -> None:
    """From now on nothing in this process finds torch; does nothing where it is loaded already.

    Only for a program of ours: transformers would have no models for anybody else in it either.
    """
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = cast("ModuleType", None)  # Python's own mark for: not to be imported
    logging.getLogger("transformers").addFilter(lambda record: LAMENT not in record.getMessage())
