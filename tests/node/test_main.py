"""The node's event loop: what strangers drop is no failure, what fails is told."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from node.main import hear_loop, unless_stopped

STARTED = "Unhandled exception in client_connected_cb"


@pytest.mark.parametrize(
    ("message", "error", "is_told"),
    [
        (STARTED, asyncio.IncompleteReadError(b"", 1), False),
        (STARTED, ConnectionResetError(), False),
        ("Exception in callback", asyncio.CancelledError(), False),
        (STARTED, ValueError(), True),
        ("Task exception was never retrieved", ConnectionResetError(), True),
    ],
)
def test_only_streams_that_a_peer_drops_or_we_give_up_are_passed_over(
    message: str, error: BaseException, is_told: bool
) -> None:
    loop: Any = Mock()
    hear_loop(loop, {"message": message, "exception": error})
    assert loop.default_exception_handler.called == is_told


def test_what_is_being_opened_is_given_up_as_soon_as_the_node_shall_leave() -> None:
    undone: list[str] = []

    async def open_slowly() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append("closed")
        return "open"

    async def story() -> tuple[str | None, str | None]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_soon(stop.set)
        given_up = await unless_stopped(open_slowly(), stop)
        return given_up, await unless_stopped(asyncio.sleep(0, "open"), asyncio.Event())

    assert asyncio.run(story()) == (None, "open")
    assert undone == ["closed"]
