"""Ranks of one machine: they prove to each other that they are, and then share sockets and memory.

Over the group's authenticated TLS every rank tells every other one the random name of a Unix
socket and a secret. Who connects there and knows the secret runs under the same kernel; it must
also belong to the same user. The name has a fixed form and lies in the kernel's own name space:
nobody can make us open a path. Memory goes over that socket as a descriptor that cannot shrink.
"""

import fcntl
import hashlib
import hmac
import logging
import mmap
import os
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from node.engine.parallel.allreduce import Reducer, SocketReducer
from node.engine.parallel.nccl_allreduce import CollectiveReducer, gpu_of, open_collective
from node.engine.parallel.shm_allreduce import MEMORY_BYTES, SharedReducer
from node.worker.group_sockets import GroupLink

logger = logging.getLogger(__name__)

MEET_SECONDS = 2.0  # all are there: they have just shaken hands
TOKEN_BYTES = 16
MACHINE_BYTES = 32
GREETING_BYTES = MACHINE_BYTES + 2 * TOKEN_BYTES
CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


@dataclass(slots=True)
class LocalPeers:
    """Sockets to the other ranks, and the memory of every rank."""

    sockets: dict[int, socket.socket] = field(default_factory=dict)
    memories: dict[int, mmap.mmap] = field(default_factory=dict)


def join_group(
    sockets: Mapping[int, socket.socket], own: int, *, near: bool = True, device: str = "cpu"
) -> tuple[GroupLink, Reducer]:
    """Return the link and the reducer of a connected group, through memory if all are near.

    GPUs of one machine use NCCL. The TLS sockets are closed when they are not needed any more.
    Raises PeerLost and Deadline.
    """
    link = GroupLink(sockets)
    found = meet(link, sorted(sockets), own, near=near)
    if found is None:
        return link, SocketReducer(own, sockets)
    for each in sockets.values():
        each.close()
    logger.info("rank %d shares memory with the ranks of its stage", own)
    link = GroupLink(found.sockets)
    gpus = meet_gpus(link, sorted(found.sockets), own, torch.device(device))
    return link, gpus or SharedReducer(own, found.sockets, found.memories)


def meet_gpus(
    link: GroupLink, others: list[int], own: int, device: torch.device
) -> CollectiveReducer | None:
    """Return a reducer over NCCL if every rank has a GPU of its own here, else None for all."""
    token, mine = secrets.token_hex(TOKEN_BYTES), gpu_of(device)
    link.broadcast(f"{token} {mine}".encode())
    words = {rank: link.receive(rank).decode().split(" ") for rank in others}
    words[own] = [token, mine]
    gpus = [each[1] for each in words.values()]
    if not all(gpus) or len(set(gpus)) < len(gpus):
        return None
    name = str(uuid.UUID(words[0][0]))  # nothing but a number is a name here
    try:
        reducer = open_collective(own_folder() / name, own, len(gpus), device)
    except OSError as error:
        logger.warning("rank %d cannot meet the other GPUs: %s", own, error)
        reducer = None
    link.broadcast(b"\1" if reducer else b"\0")
    return reducer if {link.receive(rank) for rank in others} == {b"\1"} else None


def own_folder() -> Path:
    """A folder in the temporary one that only this user can read; raises OSError."""
    folder = Path(tempfile.gettempdir()) / f"swarm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder} is not ours alone")
    return folder


def meet(link: GroupLink, others: list[int], own: int, *, near: bool = True) -> LocalPeers | None:
    """Return what the ranks share if every one of them is on this machine, else None for all."""
    with ExitStack() as stack:
        listener = _open_listener(own, stack) if near and sys.platform == "linux" else None
        for rank in others:
            link.send(rank, listener.greeting(rank) if listener else b"")
        greetings = {rank: link.receive(rank) for rank in others}
        found = listener.gather(greetings) if listener else None
        link.broadcast(b"\1" if found else b"\0")
        answers = [link.receive(rank) for rank in others]
        if found is None or set(answers) != {b"\1"}:
            return None
        stack.pop_all()
        assert listener is not None
        listener.close()
        return found


def _open_listener(own: int, stack: ExitStack) -> "LocalListener | None":
    try:
        return LocalListener(own, stack)
    except OSError as error:  # a kernel or a sandbox may refuse both
        logger.info("rank %d has no memory to share: %s", own, error)
        return None


class LocalListener:
    """Where the higher ranks of this machine find us, and the memory that we show them."""

    def __init__(self, own: int, stack: ExitStack) -> None:
        self._own, self._stack = own, stack
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._secrets: dict[int, bytes] = {}
        self._found = LocalPeers()
        self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._socket.bind(_address(self._token))
        self._socket.listen(16)
        self._memory = os.memfd_create("swarm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, self._memory)
        os.ftruncate(self._memory, MEMORY_BYTES)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, seals)
        self._found.memories[own] = mmap.mmap(self._memory, MEMORY_BYTES)

    def greeting(self, rank: int) -> bytes:
        """What `rank` must know to find us and to be believed."""
        self._secrets[rank] = secrets.token_bytes(TOKEN_BYTES)
        return _machine() + self._token + self._secrets[rank]

    def gather(self, greetings: Mapping[int, bytes]) -> LocalPeers | None:
        """Connect to every rank; None if one is elsewhere or does not come in time."""
        here = _machine()
        for greeting in greetings.values():
            if len(greeting) != GREETING_BYTES or greeting[:MACHINE_BYTES] != here:
                return None
        ends_at = time.monotonic() + MEET_SECONDS
        try:
            for rank in sorted(each for each in greetings if each < self._own):
                self._dial(rank, greetings[rank][MACHINE_BYTES:], ends_at)
            while len(self._found.sockets) < len(greetings):
                self._accept(ends_at)
        except (OSError, ValueError) as error:
            logger.info("rank %d shares no memory: %s", self._own, error)
            return None
        return self._found

    def close(self) -> None:
        """Close what only the meeting needed."""
        self._socket.close()
        os.close(self._memory)

    def _dial(self, rank: int, greeting: bytes, ends_at: float) -> None:
        token, secret = greeting[:TOKEN_BYTES], greeting[TOKEN_BYTES:]
        connection = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(_left(ends_at))
        connection.connect(_address(token))
        _check_user(connection)
        socket.send_fds(connection, [bytes([self._own]) + secret], [self._memory])
        _, memory = _received(connection, 1)
        self._keep(rank, connection, memory)

    def _accept(self, ends_at: float) -> None:
        self._socket.settimeout(_left(ends_at))
        connection = self._stack.enter_context(self._socket.accept()[0])
        connection.settimeout(_left(ends_at))
        _check_user(connection)
        words, memory = _received(connection, 1 + TOKEN_BYTES)
        rank = words[0]
        expected = self._secrets.get(rank, b"")
        if rank <= self._own or not hmac.compare_digest(words[1:], expected):
            raise ValueError("a stranger came to the listener of the group")
        socket.send_fds(connection, [b"\1"], [self._memory])
        self._keep(rank, connection, memory)

    def _keep(self, rank: int, connection: socket.socket, memory: mmap.mmap) -> None:
        self._found.sockets[rank] = connection
        self._found.memories[rank] = memory


def _received(connection: socket.socket, count: int) -> tuple[bytes, mmap.mmap]:
    """`count` bytes and the memory that came with them; raises OSError and ValueError."""
    words, descriptors, _, _ = socket.recv_fds(connection, count, 1)
    with ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        if len(words) != count or len(descriptors) != 1:
            raise ValueError("a rank shows no memory")
        if not fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise ValueError("a rank shows memory that could shrink")
        return words, mmap.mmap(descriptors[0], MEMORY_BYTES)


def _check_user(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    if CREDENTIALS.unpack(credentials)[1] != os.getuid():
        raise ValueError("another user listens or calls")


def _address(token: bytes) -> bytes:
    return b"\0swarm-" + token.hex().encode()  # no file: Linux forgets it with the socket


def _machine() -> bytes:
    """A hint that spares ranks of unlike machines the attempt; no proof."""
    path = Path("/proc/sys/kernel/random/boot_id")
    known = path.read_bytes() if path.is_file() else socket.gethostname().encode()
    return hashlib.sha256(known).digest()


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError("the ranks of this machine did not meet in time")
    return left
