"""ChatTemplate: a model's template renders a chat, within bounds of time, memory and length."""

import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from swarm.errors import BadInput
from swarm.formatting import printable

SECONDS = 5  # to render one chat, on a busy machine, too
MORE_BYTES = 1 << 30  # of memory, beyond what this process has mapped already
MOST_FILES = 1 << 16
LONGEST = 1 << 24  # bytes of a rendered chat
NEXT_STEP = "Change the messages, or give a prompt."
STATM = Path("/proc/self/statm")  # sizes of this process, in pages
Render = Callable[[], str]


def render_bounded(render: Render) -> str:
    """Call `render` in a copy of this process; raises BadInput where it fails or takes too much.

    A template is a stranger's program: no limit inside this process stops all that one can do,
    such as 10**10**10. Blocks for `SECONDS` at the most.
    """
    if not hasattr(os, "fork"):
        return _outcome_of(_rendered(render))
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(render, writes)
    os.close(writes)
    try:
        return _outcome_of(_read_all(reads))
    finally:
        os.close(reads)
        os.kill(child, signal.SIGKILL)  # it has answered, or never will; not yet waited for
        os.waitpid(child, 0)


def _be_child(render: Render, writes: int) -> None:
    """Render, answer and end, whatever happens: nothing of the parent may run here."""
    try:
        gc.disable()  # or it might finalise what is the parent's
        os.closerange(0, writes)  # or connections would outlive the parent's closing them
        os.closerange(writes + 1, MOST_FILES)
        _limit_memory()
        answer = _rendered(render)
        while answer:
            answer = answer[os.write(writes, answer) :]
    finally:
        os._exit(0)


def _rendered(render: Render) -> bytes:
    """What came of it as JSON: the text, or why there is none."""
    try:
        text = render()
        text.encode()
    except Exception as error:  # noqa: BLE001 - a template may raise whatever it likes
        return json.dumps({"error": str(error)[:1000] or type(error).__name__}).encode()
    return json.dumps({"text": text}).encode()


def _limit_memory() -> None:
    if not STATM.exists():  # no Linux: the time is bounded all the same
        return
    mapped = int(STATM.read_text().split()[0]) * resource.getpagesize()
    most = mapped + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _read_all(reads: int) -> bytes:
    """What the child says until it ends; raises BadInput if it is too slow or says too much."""
    ends_at, parts, size = time.monotonic() + SECONDS, [b""], 0
    while size <= LONGEST:
        ready, _, _ = select.select([reads], [], [], max(ends_at - time.monotonic(), 0))
        if not ready:
            raise _refused(f"takes longer than {SECONDS} s")
        part = os.read(reads, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    raise _refused(f"writes more than {LONGEST} bytes")


def _outcome_of(answer: bytes) -> str:
    if not answer:
        raise _refused("takes too much memory, or crashes")
    outcome = json.loads(answer)
    if "error" in outcome:
        raise _refused(f"cannot be used here: {printable(outcome['error']).rstrip('.')}")
    return str(outcome["text"])


def _refused(why: str) -> BadInput:
    return BadInput(f"The model's chat template {why}.", NEXT_STEP)
