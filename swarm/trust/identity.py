"""Who a peer is: an Ed25519 key on disk, the libp2p peer id that follows from it, signatures.

The key file holds libp2p's marshalled private key, so p2pd takes it as its own identity. The peer
id contains the public key: whoever knows the id can check a signature, no other fact is needed.
"""

import fcntl
import hashlib
import os
import tempfile
from base64 import b32encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm.errors import BadInput
from swarm.state_folder import make_private_folder, write_private

KEY_FILE = "identity.key"
LOCK_FILE = "lock"
KEY_HEAD = b"\x08\x01\x12\x40"  # protobuf: key_type = Ed25519, data = 64 bytes (seed, public key)
PEER_HEAD = b"\x00\x24\x08\x01\x12\x20"  # multihash "identity" of a 36-byte protobuf public key
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PEER_CAP = 64  # characters in a peer id
KEY_SIZE = 32  # bytes of a public key
FOUNDER_CHARACTERS = 26  # of base32: 130 bits, so that nobody finds another key with them
OLD_FOUNDER_CHARACTERS = 8  # of swarms founded by earlier programs, which live on: 40 bits


@dataclass(frozen=True)
class Identity:
    """A peer's key; `path` is its file, or None for a throwaway key that never rests on disk."""

    peer: str  # base58 peer id
    path: Path | None
    _key: Ed25519PrivateKey = field(repr=False)
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def load_or_create(cls, folder: Path) -> "Identity":
        """Open the key of a state folder and hold the folder's lock; raises BadInput."""
        try:
            make_private_folder(folder.parent)
            make_private_folder(folder)
            lock = _lock_of(folder)
        except OSError as error:
            raise BadInput(
                f"Cannot use the state folder {folder}: {error.strerror or error}.",
                "Name a folder that you may write with --state.",
            ) from error
        with ExitStack() as undo:
            undo.callback(lock.close)
            key = _load_or_create_key(folder / KEY_FILE)
            undo.pop_all()
        return cls(_peer_of(key), folder / KEY_FILE, key, lock)

    @classmethod
    def throwaway(cls) -> "Identity":
        """A new key in memory, for clients and tests."""
        key = Ed25519PrivateKey.generate()
        return cls(_peer_of(key), None, key)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature of `data`."""
        return self._key.sign(data)

    @contextmanager
    def key_file(self) -> Iterator[Path]:
        """Yield a file that p2pd can read while it starts; a throwaway's is deleted afterwards."""
        if self.path is not None:
            yield self.path
            return
        with tempfile.NamedTemporaryFile(prefix="swarm-", suffix=".key") as file:  # mode 0600
            file.write(_key_bytes(self._key))
            file.flush()
            yield Path(file.name)

    def close(self) -> None:
        """Release the state folder for another process."""
        if self._lock is not None:
            self._lock.close()


def load_identity(path: Path) -> Identity:
    """Open a key file, made if it is not there, without a lock; raises BadInput."""
    key = _load_or_create_key(path)
    return Identity(_peer_of(key), path, key)


def verify(peer: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` of `data` was made with the key of `peer`; False if malformed."""
    try:
        public = public_key_of(peer)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True


def public_key_of(peer: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id; raises ValueError if there is none."""
    data = _base58_decode(peer)
    if len(data) != len(PEER_HEAD) + 32 or not data.startswith(PEER_HEAD):
        raise ValueError(f"{peer[:PEER_CAP]!r} is not the id of an Ed25519 peer")
    return data[len(PEER_HEAD) :]


def peer_of_public_key(public: bytes) -> str:
    """The base58 peer id of a 32-byte Ed25519 public key."""
    return _base58_encode(PEER_HEAD + public)


def swarm_id(name: str, founder: str) -> str:
    """The id of a swarm, "<name>-<characters of a hash of name and founder>"; raises BadInput."""
    if not name or len(name) > 40 or not all(c.isalnum() or c in "-_." for c in name):
        raise BadInput(
            f"{name!r} cannot name a swarm.", "Use letters, digits and dashes, up to 40."
        )
    return f"{name}-{_founder_mark(name, founder)[:FOUNDER_CHARACTERS]}"


def is_founder(swarm: str, peer: str) -> bool:
    """Whether `peer` is the one whose hash stands in the swarm's id."""
    name, _, mark = swarm.rpartition("-")
    if not name or len(mark) not in (FOUNDER_CHARACTERS, OLD_FOUNDER_CHARACTERS):
        return False
    return _founder_mark(name, peer)[: len(mark)] == mark


def _founder_mark(name: str, founder: str) -> str:
    digest = hashlib.sha256(f"swarm founder\0{name}\0{founder}".encode()).digest()
    return b32encode(digest).decode().lower()


def _peer_of(key: Ed25519PrivateKey) -> str:
    return peer_of_public_key(key.public_key().public_bytes_raw())


def _key_bytes(key: Ed25519PrivateKey) -> bytes:
    return KEY_HEAD + key.private_bytes_raw() + key.public_key().public_bytes_raw()


def _lock_of(folder: Path) -> IO[str]:
    lock = (folder / LOCK_FILE).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read(20).strip() or "unknown"
        lock.close()
        raise BadInput(
            f"The state folder {folder} is in use by process {owner}.",
            "Choose another with --state.",
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _load_or_create_key(path: Path) -> Ed25519PrivateKey:
    try:
        if not path.exists():
            write_private(path, _key_bytes(Ed25519PrivateKey.generate()))
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"Cannot use the key file {path}: {error}.") from error
    if len(data) != len(KEY_HEAD) + 64 or not data.startswith(KEY_HEAD):
        raise BadInput(
            f"{path} is not a key of Swarm.", "Restore it, or remove it to become a new peer."
        )
    key = Ed25519PrivateKey.from_private_bytes(data[len(KEY_HEAD) :][:32])
    if _key_bytes(key) != data:
        raise BadInput(f"The key in {path} is damaged.", "Restore it, or remove it.")
    return key


def _base58_encode(data: bytes) -> str:
    number = int.from_bytes(data)
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = ALPHABET[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _base58_decode(text: str) -> bytes:
    if not text or len(text) > PEER_CAP:
        raise ValueError("not a peer id")
    number = 0
    for character in text:
        number = number * 58 + ALPHABET.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8)
