"""Notices a p2pd that hangs: it is killed, and whoever keeps the daemon starts another one."""

import asyncio

from swarm.p2p.p2p_daemon import P2PDaemon

BEAT_SECONDS = 2.0
HUNG_BEATS = 4  # without an answer, nor any computing: given up
STUCK_BEATS = 30  # without an answer, whatever it computes
COMPUTING_SHARE = 0.01  # of a core, while it is asked: a busy machine lets it wait


async def watch_answers(daemon: P2PDaemon) -> None:
    """Kill a p2pd that answers nothing for long; returns when nobody will start another one.

    Time that we slept ourselves counts for one beat, as does a question over a daemon that has
    just been replaced.
    """
    missed, computed = 0, 0.0
    while not daemon.given_up.is_set():
        await asyncio.sleep(BEAT_SECONDS)
        p2p = daemon.p2p
        if daemon.ended.is_set() or await _answers(daemon) or daemon.p2p is not p2p:
            missed = 0
            continue
        missed += 1
        if missed == 1:
            computed = daemon.cpu_seconds  # what it did before it fell silent is no sign of life
        computes = daemon.cpu_seconds - computed > COMPUTING_SHARE * missed * BEAT_SECONDS
        if missed >= (STUCK_BEATS if computes else HUNG_BEATS):
            daemon.kill(f"it has answered nothing for {missed} beats")
            missed = 0


async def _answers(daemon: P2PDaemon) -> bool:
    try:
        async with asyncio.timeout(BEAT_SECONDS):
            return await daemon.is_answering()
    except TimeoutError:
        return False
