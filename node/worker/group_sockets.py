"""Sockets of a tensor-parallel group: mutual TLS, every certificate pinned, one to each rank."""

import datetime
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.worker.group_handshakes import Meeting
from node.worker.messages import Rank
from swarm.errors import Deadline, PeerLost
from swarm.wire.framing import BODY_CAP, PREFIX

CONNECT_SECONDS = 60.0  # members load at different speeds
STEP_SECONDS = 30.0  # a rank that is silent for longer inside a step is lost
BACKLOG = 128  # connections that come while this rank is still busy


class GroupListener:
    """A listening socket with a throw-away certificate, opened before the others know of it."""

    def __init__(self, host: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(self._key)
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self._socket = socket.create_server((host, 0), backlog=BACKLOG)
        self.port = int(self._socket.getsockname()[1])

    def connect(self, ranks: Sequence[Rank], own: int) -> dict[int, ssl.SSLSocket]:
        """Return a connected socket for every other rank; raises PeerLost or Deadline.

        The higher rank dials the lower one, so that each pair has exactly one connection.
        """
        meeting = Meeting(self._socket, ranks, own, self._context)
        sockets = dict(meeting.hold(time.monotonic() + CONNECT_SECONDS))
        for each in sockets.values():
            each.settimeout(STEP_SECONDS)
        return sockets

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _context(self, protocol: int, ranks: Sequence[Rank]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        for rank in ranks:
            context.load_verify_locations(cadata=rank.certificate)
        with tempfile.TemporaryDirectory() as folder:  # the ssl module reads keys from files only
            path = Path(folder, "rank.pem")
            path.touch(mode=0o600)
            path.write_bytes(self._pem())
            context.load_cert_chain(path)
        return context

    def _pem(self) -> bytes:
        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        certificate = x509.load_der_x509_certificate(self.certificate)
        return key + certificate.public_bytes(serialization.Encoding.PEM)


class GroupLink:
    """How the leader tells the other ranks what the next step is, over the group's sockets."""

    def __init__(self, sockets: Mapping[int, socket.socket]) -> None:
        self._sockets = dict(sockets)

    def broadcast(self, blob: bytes) -> None:
        """Send `blob` to every rank; raises PeerLost."""
        for rank, each in self._sockets.items():
            self._send(rank, each, blob)

    def send(self, rank: int, blob: bytes) -> None:
        """Send `blob` to one rank; raises PeerLost."""
        self._send(rank, self._sockets[rank], blob)

    def receive(self, rank: int, *, idle: bool = False) -> bytes:
        """Return the next blob of `rank`; `idle` waits without a deadline; raises PeerLost."""
        each = self._sockets[rank]
        try:
            each.settimeout(None if idle else STEP_SECONDS)
            first = each.recv(PREFIX.size)
            each.settimeout(STEP_SECONDS)
            prefix = first + _read(each, PREFIX.size - len(first)) if first else b""
            if not prefix:
                raise PeerLost(f"Rank {rank} of the group closed its connection.")
            size = PREFIX.unpack(prefix)[1]
            if size > BODY_CAP:
                raise PeerLost(f"Rank {rank} of the group sent {size} bytes at once.")
            return _read(each, size)
        except TimeoutError as error:
            raise Deadline(f"Rank {rank} of the group is silent.") from error
        except OSError as error:
            raise PeerLost(f"Rank {rank} of the group is lost: {error}") from error

    def close(self) -> None:
        """Shut every connection down; a rank that waits in `receive` wakes with PeerLost."""
        for each in self._sockets.values():
            try:
                socket.socket.shutdown(each, socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was quicker

    def _send(self, rank: int, each: socket.socket, blob: bytes) -> None:
        try:
            each.settimeout(STEP_SECONDS)
            each.sendall(PREFIX.pack(0, len(blob)) + blob)
        except OSError as error:
            raise PeerLost(f"Rank {rank} of the group is lost: {error}") from error


def _read(each: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = each.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ConnectionError("the connection ended inside a message")
        parts += part
    return bytes(parts)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # OpenSSL finds a trusted certificate by its subject: equal names would shadow each other
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"swarm rank {secrets.token_hex(8)}")]
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(days=1),
        not_valid_after=now + datetime.timedelta(days=3650),
    )
    return builder.sign(key, hashes.SHA256())
