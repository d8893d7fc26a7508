"""`python -m node.worker.standby`: a worker before it has a device: it imports all, then waits.

It imports in a thread of least priority, since what has lowered its priority cannot raise it again;
the main thread, which will compute, keeps its own. (Threads of numpy's begin there and stay as low:
nothing of ours gives them work.) No device is touched before the node has said which.
"""

import logging
import os
import socket
import sys
import threading

from node.engine.thread_priority import lower_own_priority
from node.worker.heartbeat import end_with_parent
from swarm.formatting import log_printably

logger = logging.getLogger(__name__)

WARM, BEGUN = b"warm\n", b"begun\n"  # all is imported; the place is taken
LONGEST_PLACE = 256  # bytes of the line that says which device, threads, slowdown, sessions
REHEARSAL_BYTES = 1 << 25  # of weights and KV of the built-in model


def main() -> None:
    """Stand by on two inherited sockets: those, and the kind of device to import for."""
    descriptor, pulse, kind = sys.argv[1:4]
    end_with_parent()
    log_printably()
    node = socket.socket(fileno=int(descriptor))
    warming = threading.Thread(target=_warm_up, args=(node, kind), daemon=True, name="warming up")
    warming.start()
    place = read_place(node)
    warming.join()
    from node.worker.compute_loop import serve  # torch: loaded by that thread

    node.sendall(BEGUN)
    serve(node, socket.socket(fileno=int(pulse)), place)


def read_place(node: socket.socket) -> list[str]:
    """Wait for the line that says what to be, and read no byte of the orders behind it."""
    with node.makefile("rb", buffering=0) as stream:
        line = stream.readline(LONGEST_PLACE)
    if not line.endswith(b"\n"):
        os._exit(0)  # the node is gone, or counts on us no more
    return line.decode().split()


def _warm_up(node: socket.socket, kind: str) -> None:
    lower_own_priority()
    try:
        _import_all(kind)
        node.sendall(WARM)
    except (
        Exception
    ):  # an island: nobody counts on it yet, and a plain start will say what is wrong
        logger.info("a standby worker cannot be prepared", exc_info=True)
        os._exit(1)


def _import_all(kind: str) -> None:
    import torch

    from node.worker.compute_loop import import_models, keep_imports

    torch.set_num_threads(1)  # of this thread: no others are begun, which would be as low
    import_models(kind)
    _rehearse()
    keep_imports()


def _rehearse() -> None:
    """Load and run the built-in model on the CPU: what is built at first use is there then."""
    from node.engine.shard_io import StageSpec
    from node.engine.stage_runner import StageRunner
    from node.worker.shard import LoadedShard, Place
    from swarm.checkpoint.folder import find_model, read_spec
    from swarm.model_spec import BUILT_IN

    folder = find_model(BUILT_IN)
    model = read_spec(folder, BUILT_IN)
    shares = (0, model.kv_heads), (0, model.mlp_blocks)
    spec = StageSpec(folder, 0, model.layers, 0, *shares)
    runner = StageRunner.load(spec, budget_bytes=REHEARSAL_BYTES)
    LoadedShard(runner, Place(0, 1, model.hidden), None, 1.0).self_test()


if __name__ == "__main__":
    main()
