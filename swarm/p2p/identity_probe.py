"""Identity probe: whether the peer that answers at an address is the one that is meant.

A dial from a socket of its own, past p2pd: p2pd would take a connection that is open already, or
dial from the port that the peer's router may still let in.
"""

import asyncio
import ssl

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from swarm.trust.identity import public_key_of

DIAL_SECONDS = 4.0  # for the connection: a router that drops says nothing
HELLO_SECONDS = 4.0  # for what follows
MULTISTREAM, TLS = "/multistream/1.0.0", "/tls/1.0.0"
LINE_CAP = 127  # bytes of a protocol's name, as one byte says it
EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")  # libp2p's, in a certificate
SIGNED_HEAD = b"libp2p-tls-handshake:"
KEY_HEAD = b"\x04\x24\x08\x01\x12\x20"  # ASN.1 octets with a protobuf: an Ed25519 key of 32 bytes
SIGNATURE_HEAD = b"\x04\x40"  # ASN.1 octets: 64 bytes


async def is_peer_at(host: str, port: int, peer: str) -> bool:
    """Whether a peer proves its identity at an address (libp2p over TLS); returns in seconds."""
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            return names_peer(await _certificate(reader, writer), peer)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.transport.abort()


def names_peer(certificate: bytes, peer: str) -> bool:
    """Whether a certificate (DER) is signed with the key of a peer, as libp2p wants it."""
    try:
        shown = x509.load_der_x509_certificate(certificate)
        extension = shown.extensions.get_extension_for_oid(EXTENSION).value
        assert isinstance(extension, x509.UnrecognizedExtension)
        own = public_key_of(peer)
        head = KEY_HEAD + own + SIGNATURE_HEAD
        _, found, signature = extension.value.partition(head)
        key = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        Ed25519PublicKey.from_public_bytes(own).verify(signature, SIGNED_HEAD + key)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, InvalidSignature):
        return False
    return bool(found)


async def _certificate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What the other side shows in TLS 1.3, which proves that it has the key to it."""
    writer.write(_line(MULTISTREAM) + _line(TLS))
    for wanted in (MULTISTREAM, TLS):
        size = (await reader.readexactly(1))[0]
        if size > LINE_CAP or await reader.readexactly(size) != wanted.encode() + b"\n":
            raise ValueError("it does not speak libp2p over TLS")
    await writer.start_tls(_context())
    shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown or b""


def _context() -> ssl.SSLContext:
    """Peers sign their own certificates; `names_peer` looks at what they say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["libp2p"])
    return context


def _line(protocol: str) -> bytes:
    return bytes([len(protocol) + 1]) + protocol.encode() + b"\n"
