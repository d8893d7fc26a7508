"""A node listens where it did the last time, so that what others wrote down still leads to it."""

import socket
from pathlib import Path

import pytest

from node.network.last_port import PORT_FILE, keep_port, last_port

HERE = ["127.0.0.1"]


def a_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_the_port_of_the_last_time_is_taken_again(tmp_path: Path) -> None:
    assert last_port(tmp_path, HERE) == 0
    port = a_port()
    keep_port(tmp_path, port)
    assert last_port(tmp_path, HERE) == port


def test_a_port_that_somebody_else_has_now_is_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        keep_port(tmp_path, taken.getsockname()[1])
        assert last_port(tmp_path, HERE) == 0


@pytest.mark.parametrize("text", ["", "0", "80", "65536", "-1", "4001x", "9" * 400, "²", "\0"])
def test_nonsense_in_its_place_is_no_port(tmp_path: Path, text: str) -> None:
    (tmp_path / PORT_FILE).write_text(text)
    assert last_port(tmp_path, HERE) == 0


def test_a_port_that_cannot_be_kept_costs_nothing(tmp_path: Path) -> None:
    keep_port(tmp_path / "missing", 4001)
    assert last_port(tmp_path / "missing", HERE) == 0
