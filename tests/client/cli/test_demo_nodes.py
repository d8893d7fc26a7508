"""The demo's nodes: what each of them waits for, in one line."""

import asyncio
from typing import cast

import pytest

from client.cli.demo_nodes import DemoNode, NodeSpec


class Printed:
    """A process that has printed lines, and ended."""

    def __init__(self, *lines: str) -> None:
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_data("".join(line + "\n" for line in lines).encode())
        self.stdout.feed_eof()


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ((), "starts: it has not begun"),
        (("node: oak (abc)", "offer: device 0, 8 GB"), "is in no plan yet: device 0, 8 GB"),
        (("offer: x", "waiting: 3 MB are missing", "a warning"), "waits: 3 MB are missing"),
        (("waiting: x", "plan: layers 0-3"), "loads, or compiles: layers 0-3"),
        (("plan: x", "ready: layers 0-3"), "is ready: layers 0-3"),
        (("plan: x", "lost: rank 1"), "begins again: rank 1"),
        (("ready: x", "paused: swarm pause"), "is paused: swarm pause"),
        (("ready: layers 0-3", "node.node: the board is out of reach"), "is ready: layers 0-3"),
    ],
)
def test_the_last_turning_point_says_what_a_node_waits_for(
    lines: tuple[str, ...], state: str
) -> None:
    async def story() -> None:
        process = cast("asyncio.subprocess.Process", Printed(*lines))
        node = DemoNode(NodeSpec("oak", 1, 1.0), process, lambda _name, _line: None)
        await node.reading
        assert node.state() == state

    asyncio.run(story())
