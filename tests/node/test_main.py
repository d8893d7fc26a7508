"""The node's event loop: what strangers drop is no failure, what fails is told."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from node.main import hear_loop

STARTED = "Unhandled exception in client_connected_cb"


@pytest.mark.parametrize(
    ("message", "error", "is_told"),
    [
        (STARTED, asyncio.IncompleteReadError(b"", 1), False),
        (STARTED, ConnectionResetError(), False),
        (STARTED, ValueError(), True),
        ("Task exception was never retrieved", ConnectionResetError(), True),
    ],
)
def test_only_streams_that_a_peer_drops_are_passed_over(
    message: str, error: Exception, is_told: bool
) -> None:
    loop: Any = Mock()
    hear_loop(loop, {"message": message, "exception": error})
    assert loop.default_exception_handler.called == is_told
