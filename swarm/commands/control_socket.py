"""Control socket: how programs of one user give orders to a node of theirs on this machine.

It lies in the node's folder and belongs to its user alone. One question a connection: four bytes
of length and a msgpack map `{"order": ..., further words}` one way, `{"answer": ...}` or
`{"error": [cause, next step]}` the other. Then the connection ends - after `leave`, with the node.
"""

import os
import select
import shutil
import socket
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from swarm.errors import BadInput, SwarmError, Unreachable
from swarm.state_folder import write_private

SOCKET, POINTER = "control.sock", "control.path"  # in a node's folder; the second names another
PATH_CAP = 100  # bytes of a socket's path: systems take 103 to 107
LENGTH = struct.Struct("!I")
ORDER_CAP, ANSWER_CAP = 1 << 16, 1 << 25  # bytes
ANSWER_SECONDS = 10.0
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
NODE_FOLDERS = "node-*"


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node of ours that runs on this machine, by its folder and its socket."""

    folder: Path
    path: Path

    def ask(
        self, order: str, *, timeout_seconds: float = ANSWER_SECONDS, **words: object
    ) -> dict[str, Any]:
        """Give an order and return what the node answers; raises what it refuses, Unreachable."""
        with self._connected(timeout_seconds) as line:
            return _answer_of(self._ask(line, {"order": order, **words}))

    def ask_to_leave(self, timeout_seconds: float) -> bool:
        """Let the node leave; whether it has ended within the time. Raises SwarmError."""
        with self._connected(timeout_seconds) as line:
            pid = _answer_of(self._ask(line, {"order": "leave"})).get("pid")
            try:
                line.recv(1)
            except TimeoutError:
                return False
            except OSError:
                pass  # it is gone
        return not isinstance(pid, int) or _has_ended(pid, timeout_seconds)

    def _connected(self, seconds: float) -> socket.socket:
        """An open connection; raises Unreachable if nobody of ours answers."""
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(seconds)
        try:
            line.connect(str(self.path))
            if not is_ours(line):
                raise PermissionError("the socket belongs to another user")
        except OSError as error:
            line.close()
            raise self._silent(error) from error
        return line

    def _ask(self, line: socket.socket, order: Mapping[str, object]) -> object:
        try:
            line.sendall(packed(order, ORDER_CAP))
            (size,) = LENGTH.unpack(_read(line, LENGTH.size))
            return unpacked(_read(line, min(size, ANSWER_CAP + 1)), ANSWER_CAP)
        except (OSError, EOFError, ValueError) as error:
            raise self._silent(error) from error

    def _silent(self, error: Exception) -> Unreachable:
        why = str(error) or type(error).__name__
        return Unreachable(
            f"The node in {self.folder} does not answer: {why}.", "Try again, or end its process."
        )


def local_nodes(state: Path) -> list[LocalNode]:
    """The nodes of a state folder that run on this machine now."""
    folders = sorted(state.glob(NODE_FOLDERS), key=lambda folder: (len(folder.name), folder.name))
    nodes = [LocalNode(folder, path) for folder in folders if (path := _path_in(folder))]
    return [node for node in nodes if _is_heard(node.path)]


def the_local_node(state: Path, name: str = "") -> LocalNode:
    """The one node that runs, or the one of this folder's name; raises BadInput."""
    nodes = local_nodes(state)
    chosen = [node for node in nodes if name in ("", node.folder.name)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(node.folder.name for node in nodes)
    if not nodes:
        raise BadInput(
            f"No node runs on this machine with the state folder {state}.",
            "Start one with `swarm node`, or name its folder with --state.",
        )
    if not chosen:
        raise BadInput(f"No node {name} runs here.", f"Those that do: {names}.")
    raise BadInput(f"Several nodes run here: {names}.", f"Say which: --node {nodes[0].folder.name}")


def is_ours(line: socket.socket) -> bool:
    """Whether the other end of a connection is a program of ours, as far as systems tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True  # the modes of socket and folder keep others out
    _, user, _ = CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, option, CREDENTIALS.size))
    return bool(user == os.getuid())


def bind_socket(folder: Path) -> socket.socket:
    """A socket in a node's folder, not yet listened to; whoever holds the folder's lock may bind.

    Where the folder's path is too long it lies in a folder of its own among temporary files, which
    a file in the node's folder names. Raises OSError.
    """
    remove_socket(folder)
    path = folder / SOCKET
    if len(os.fsencode(path)) > PATH_CAP:
        path = Path(tempfile.mkdtemp(prefix="swarm-")) / SOCKET  # mode 0700
        write_private(folder / POINTER, os.fsencode(path))
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(str(path))
        path.chmod(0o600)  # before anybody is listened to
    except OSError:
        made.close()
        remove_socket(folder)
        raise
    return made


def remove_socket(folder: Path) -> None:
    """Remove what a node leaves behind: its own, or a dead one's."""
    with suppress(OSError):
        elsewhere = Path(os.fsdecode((folder / POINTER).read_bytes())).parent
        if elsewhere.name.startswith("swarm-") and {*os.listdir(elsewhere)} <= {SOCKET}:
            shutil.rmtree(elsewhere)
    for name in (POINTER, SOCKET):
        with suppress(OSError):
            (folder / name).unlink()


def packed(words: Mapping[str, object], cap: int) -> bytes:
    """A message as it travels; raises ValueError if it is too long."""
    data = bytes(msgpack.packb(words))
    if len(data) > cap:
        raise ValueError(f"a message of {len(data)} bytes is too long")
    return LENGTH.pack(len(data)) + data


def unpacked(data: bytes, cap: int) -> object:
    """What a message says; raises ValueError."""
    if len(data) > cap:
        raise ValueError("the message is too long")
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"the message is not msgpack: {error}") from error


def _has_ended(pid: int, seconds: float) -> bool:
    """Whether a process ends within the time; where systems do not tell, it is taken to."""
    if not hasattr(os, "pidfd_open"):
        return True
    try:
        ended = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(select.select([ended], [], [], seconds)[0])
    finally:
        os.close(ended)


def _path_in(folder: Path) -> Path | None:
    """Where the socket of a node's folder is, if there is one."""
    path = folder / SOCKET
    with suppress(OSError):
        path = Path(os.fsdecode((folder / POINTER).read_bytes()))
    return path if path.is_socket() else None


def _is_heard(path: Path) -> bool:
    """Whether somebody listens to a socket: that of a dead node refuses."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1.0)
        try:
            line.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


def _read(line: socket.socket, size: int) -> bytes:
    """So many bytes; raises EOFError, OSError."""
    data = bytearray()
    while len(data) < size:
        piece = line.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("it ended the connection")
        data += piece
    return bytes(data)


def _answer_of(said: object) -> dict[str, Any]:
    match said:
        case {"answer": dict(answer)}:
            return answer
        case {"error": [str(cause), str(next_step)]}:
            raise SwarmError(cause, next_step)
    raise Unreachable("The node's answer makes no sense.", "Is it of another version? Restart it.")
