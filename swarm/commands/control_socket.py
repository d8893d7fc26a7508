"""Control socket: how programs of one user give orders to a node of theirs on this machine.

It lies in the node's folder and belongs to its user alone. One question a connection: four bytes
of length and a msgpack map `{"order": ..., further words}` one way, `{"answer": ...}` or
`{"error": [cause, next step], "kind": ...}` the other. Then the connection ends - after `leave`,
with the node. Orders that are answered bit by bit have several answers, an empty one every
`BEAT_SECONDS` while there is nothing else to say; any word of the asker meanwhile means: enough.
"""

import os
import select
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from swarm import errors
from swarm.errors import BadInput, SwarmError, Unreachable
from swarm.state_folder import write_private

SOCKET, POINTER = "control.sock", "control.path"  # in a node's folder; the second names another
PATH_CAP = 100  # bytes of a socket's path: systems take 103 to 107
LENGTH = struct.Struct("!I")
ORDER_CAP, ANSWER_CAP = 1 << 23, 1 << 25  # bytes; an order may bring the ids of a long prompt
ANSWER_SECONDS = 10.0
BEAT_SECONDS = 1.0  # between two signs of life of a node that answers bit by bit
SILENCE_SECONDS = 10.0  # after which such a node is given up
ENOUGH = {"order": "enough"}
KINDS: dict[str, type[SwarmError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SwarmError)
}
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

    @contextmanager
    def ask_for_all(
        self, order: str, **words: object
    ) -> Iterator[tuple[Iterator[dict[str, Any]], Callable[[], None]]]:
        """Give an order that is answered bit by bit: the answers, and how to say that it is enough.

        Leaving the block hangs up. Reading raises what the node refuses, Unreachable.
        """
        with self._connected(SILENCE_SECONDS) as line:
            self._tell(line, {"order": order, **words})
            yield self._answers(line), lambda: self._tell(line, ENOUGH)

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

    def _answers(self, line: socket.socket) -> Iterator[dict[str, Any]]:
        """What comes until the node hangs up, signs of life left out."""
        while (said := self._hear(line)) is not None:
            if answer := _answer_of(said):
                yield answer

    def _ask(self, line: socket.socket, order: Mapping[str, object]) -> object:
        self._tell(line, order)
        if (said := self._hear(line)) is None:
            raise self._silent(EOFError("it ended the connection"))
        return said

    def _tell(self, line: socket.socket, order: Mapping[str, object]) -> None:
        try:
            line.sendall(packed(order, ORDER_CAP))
        except (OSError, ValueError) as error:
            raise self._silent(error) from error

    def _hear(self, line: socket.socket) -> object:
        """What the node says next, or None at the end; raises Unreachable."""
        try:
            first = line.recv(1)
            if not first:
                return None
            (size,) = LENGTH.unpack(first + _read(line, LENGTH.size - 1))
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


def words_of_error(error: SwarmError) -> dict[str, object]:
    """An error as it travels: what the other side raises is of the same kind."""
    words: dict[str, object] = {"error": [error.cause, error.next_step]}
    words["kind"] = type(error).__name__
    return words | ({"option": error.option} if isinstance(error, BadInput) else {})


def _error_of(cause: str, next_step: str, said: Mapping[object, object]) -> SwarmError:
    kind = KINDS.get(str(said.get("kind")), SwarmError)
    if issubclass(kind, BadInput):
        return kind(cause, next_step, option=str(said.get("option", "")))
    return kind(cause, next_step)


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
        case {"error": [str(cause), str(next_step)], **more}:
            raise _error_of(cause, next_step, more)
    raise Unreachable("The node's answer makes no sense.", "Is it of another version? Restart it.")
