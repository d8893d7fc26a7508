"""SwarmKey: what the members of a private swarm know, and what follows from it; empty in open ones.

The key that a person types is stretched once (scrypt, salted with the swarm's id), so that a word
list costs an attacker about a tenth of a second a word; each use has a key of its own.
"""

import hashlib
import hmac
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SCRYPT_COST = 2**15  # 32 MiB and about 0.1 s, once at the start
NONCE_BYTES = 12
TAG_BYTES = 16
NAME_BYTES = 16


class SwarmKey:
    """Seals records, proves membership and names the swarm to those who know the key."""

    def __init__(self, swarm: str, key: str = "") -> None:
        self.swarm = swarm
        self.is_private = bool(key)
        self._root = _stretched(swarm, key) if key else b""
        self._cipher = ChaCha20Poly1305(self._derived("records")) if key else None
        self.name = self._derived("name")[:NAME_BYTES].hex() if key else swarm
        """What stands in the names of keys and streams, which outsiders can read."""

    @property
    def overhead_bytes(self) -> int:
        """By how much sealed data is longer than plain."""
        return NONCE_BYTES + TAG_BYTES if self.is_private else 0

    def proof(self, purpose: str, sender: str, receiver: str) -> bytes:
        """What `sender` shows `receiver`, and nobody else can use; empty in an open swarm."""
        if not self.is_private:
            return b""
        return hmac.digest(self._derived(purpose), f"{sender}\0{receiver}".encode(), "sha256")

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Encrypt, bound to its context; in an open swarm the data as it is."""
        if self._cipher is None:
            return data
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, context)

    def unseal(self, data: bytes, context: bytes) -> bytes | None:
        """The plain data; None if it was not sealed with this key in this context."""
        if self._cipher is None:
            return data
        try:
            return self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            return None

    def _derived(self, purpose: str) -> bytes:
        return hmac.digest(self._root, f"swarm {purpose}".encode(), "sha256")


@lru_cache(64)
def _stretched(swarm: str, key: str) -> bytes:
    salt = f"swarm key 1\0{swarm}".encode()
    memory = 256 * SCRYPT_COST * 8
    return hashlib.scrypt(key.encode(), salt=salt, n=SCRYPT_COST, r=8, p=1, maxmem=memory)
