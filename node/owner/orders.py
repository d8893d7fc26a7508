"""Orders: what programs of the owner may ask of his node, by name: pause, leave, status ..."""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from node.owner.control_server import LINGERS, Words
from node.owner.owner_control import OwnerControl
from swarm.dht.board import Board
from swarm.errors import BadInput
from swarm.records import Advert, Capability, Lease, Record, Relay, record_to_list

SHOWN: tuple[type[Record], ...] = (Capability, Advert, Lease, Relay)  # the records of a status
BOARD_SECONDS = 5.0  # for the board to be read
LONGEST_PAUSE = 366 * 86400.0


class Observed(Protocol):
    """A node, as far as its owner sees it."""

    def facts(self) -> dict[str, Any]:
        """What it is and does now, in plain values."""


class Orders:
    """Carries out one order at a time of each who gives one."""

    def __init__(
        self, control: OwnerControl, node: Observed, board: Board, leave: Callable[[], None]
    ) -> None:
        self._control = control
        self._node = node
        self._board = board
        self._leave = leave
        self._by_name: dict[str, Callable[[Words], Awaitable[Words]]] = {
            "pause": self._pause,
            "resume": self._resume,
            "leave": self._go,
            "status": self._status,
        }

    def add(self, name: str, carry_out: Callable[[Words], Awaitable[Words]]) -> None:
        """Know one more order."""
        self._by_name[name] = carry_out

    async def carry_out(self, name: str, words: Words) -> Words:
        """Do what an order says, and return the answer; raises BadInput."""
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise BadInput(f"This node knows no order {name[:40]!r}.", f"It knows: {known}.")
        return await self._by_name[name](words)

    async def _pause(self, words: Words) -> Words:
        seconds = words.get("seconds", math.inf)
        if not isinstance(seconds, int | float) or not seconds > 0:
            raise BadInput("A pause has a positive number of seconds.", "See `swarm pause --help`.")
        begun = time.monotonic()
        await self._control.pause(min(seconds, LONGEST_PAUSE) if seconds < math.inf else seconds)
        return {"paused": self._control.why, "seconds": time.monotonic() - begun}

    async def _resume(self, _words: Words) -> Words:
        was = self._control.why
        await self._control.resume()
        return {"was": was, "paused": self._control.why}

    async def _go(self, _words: Words) -> Words:
        self._leave()
        return {LINGERS: True, "pid": os.getpid()}

    async def _status(self, _words: Words) -> Words:
        """What the node knows of itself and of its swarm."""
        async with asyncio.timeout(BOARD_SECONDS):
            found = await asyncio.gather(*(self._board.read(kind) for kind in SHOWN))
        records = {
            kind.KEY: {peer: record_to_list(each) for peer, each in seen.items()}
            for kind, seen in zip(SHOWN, found, strict=True)
        }
        paused = {"paused": self._control.why}
        return {"node": self._node.facts() | paused, "records": records}
