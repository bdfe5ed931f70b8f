"""The client's side of TLS by Python's `ssl`, for platforms without compiled modules.

Its names and rules are those of `context.ClientContext`, `handshake.Handshake` and
`channel.channel_of`, as far as a client uses them (PROTOCOL §10, §13). One owner at a time.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509

from fastderp.tls import roots
from fastderp.tls.errors import TlsError
from fastderp.util.net import host_bytes, is_address
from fastderp.util.reasons import own_text

# DER of a common name (2.5.4.3) that begins as that of a metacert.
_METACERT = re.compile(rb"\x06\x03\x55\x04\x03[\x0c\x13].derpkey", re.DOTALL)
# OpenSSL returns the data of one record at a time (RFC 5246 §6.2.1).
_RECORD_PLAIN_MAX = 1 << 14


class ClientContext:
    """The settings and trusted roots of a client."""

    def __init__(
        self,
        *,
        verify: bool = True,
        cafile: str | os.PathLike[str] | None = None,
        pin: bytes | None = None,
    ) -> None:
        """Prepare to connect.

        Args:
            verify: whether the chain must lead to a trusted root and the leaf be for the name.
            cafile: more roots, a file of PEM.
            pin: SHA-256 of the only leaf to accept, regardless of its issuer.

        Raises TlsError (cause `certificate`) for roots that cannot be read.
        """
        self.verify: bool = verify and pin is None
        self.pin = pin
        self.ssl: ssl.SSLContext = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self.ssl.options |= ssl.OP_NO_RENEGOTIATION
        self.ssl.check_hostname = False
        self.ssl.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE
        if not self.verify:
            return
        # A certificate that is trusted itself ends a chain, as in Go.
        self.ssl.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.ssl.load_default_certs()
        # Not DER, whose end Python 3.11 takes for an error of OpenSSL 3.6.
        self.ssl.load_verify_locations(
            cadata="".join(ssl.DER_cert_to_PEM_cert(root) for root in roots.BUILT_IN)
        )
        if cafile is not None:
            try:
                self.ssl.load_verify_locations(cafile)
            except (OSError, ssl.SSLError) as error:
                raise TlsError(
                    "certificate", f"no usable certificates in {cafile}: {own_text(error)}"
                ) from None


class Handshake:
    """One connection's handshake: feed it, step it and send its output until it is done."""

    def __init__(
        self, context: ClientContext, server_name: str, *, cert_name: str | None = None
    ) -> None:
        """Begin.

        Sends `server_name`, unless it is an address, and checks the certificate against
        `cert_name`, by default the same name. Raises ValueError for an invalid name.
        """
        self.version: str | None = None
        """`TLSv1.2` or `TLSv1.3` once done."""
        self.cipher: str | None = None
        """OpenSSL's name of the suite once done."""
        self.peer_chain: list[bytes] = []
        """The server's certificates in DER, in the order it sent them, once done."""
        self._context = context
        self._server_name = server_name
        self._cert_name = cert_name or server_name
        self._source, self._sink = ssl.MemoryBIO(), ssl.MemoryBIO()
        # None sends no name (RFC 6066 §3).
        named = None if is_address(server_name) else server_name
        self._object = context.ssl.wrap_bio(self._source, self._sink, server_hostname=named)

    def feed(self, data: bytes | memoryview) -> None:
        """Hand over bytes of the peer, of any length."""
        self._source.write(data)

    def step(self) -> bool:
        """Continue as far as the input allows; return whether the handshake is done.

        Raises TlsError; `take_output` then has the alert for the peer, if there is one.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            text = f"certificate verify failed: {error.verify_message}"
            raise TlsError("certificate", f"TLS handshake failed: {text}") from None
        except ssl.SSLError as error:
            raise TlsError("protocol", f"TLS handshake failed: {_reason(error)}") from None
        self.version = self._object.version()
        self.cipher = (self._object.cipher() or (None,))[0]
        self.peer_chain = _chain(self._object)
        self._check()
        return True

    def take_output(self) -> bytes:
        """Return the bytes to send to the peer, also after a failed step."""
        return self._sink.read()

    def channel(self) -> Channel:
        """Return the connection's bytes, once done."""
        return Channel(self._object, self._source, self._sink)

    def _check(self) -> None:
        """Check the leaf, whose key has signed this handshake, and the rest (PROTOCOL §13)."""
        pin = self._context.pin
        if not (self._context.verify or pin):
            return
        if not self.peer_chain:
            self._refuse("the server presents no certificate")
        der, *others = self.peer_chain
        if self._context.verify:
            if not certificate_is_for(x509.load_der_x509_certificate(der), self._cert_name):
                self._refuse(f"the server's certificate is not for {self._cert_name}")
            return
        # The relay discards a metacert's own key, so a metacert as a leaf is forged.
        if hashlib.sha256(der).digest() != pin or _METACERT.search(der):
            self._refuse("the server's certificate is not the pinned one")
        if not all(_METACERT.search(other) for other in others):
            self._refuse("the server presents more certificates than the pinned one")
        leaf = x509.load_der_x509_certificate(der)
        name = self._server_name
        if not is_address(name) and not certificate_is_for(leaf, name):
            self._refuse(f"the server's certificate is pinned, but not for {name}")
        if not leaf.not_valid_before_utc <= datetime.now(UTC) <= leaf.not_valid_after_utc:
            self._refuse("the server's certificate is pinned, but not valid now")

    def _refuse(self, why: str) -> None:
        self._sink.read()  # our Finished must not complete a handshake that is refused
        raise TlsError("certificate", why)


class Channel:
    """Turns wire bytes into plain bytes and back, through Python's `ssl`.

    Methods raise TlsError when the peer violates the protocol. OpenSSL's answers to the peer, such
    as a KeyUpdate, are sent with the next output.
    """

    def __init__(self, connection: ssl.SSLObject, source: ssl.MemoryBIO, sink: ssl.MemoryBIO):
        """Use `channel_of` instead."""
        self.eof: bool = False
        """Whether the peer has announced the end of its output."""
        self.failure: TlsError | None = None
        """The violation that has ended the input; the next `open` raises it."""
        self._object = connection
        self._source, self._sink = source, sink

    def open(self, wire: bytes | memoryview) -> bytes:
        """Take bytes from the wire; return the plain bytes that are complete."""
        if self.failure is not None:
            raise self.failure
        self._source.write(wire)
        pieces = []
        try:
            while piece := self._object.read(_RECORD_PLAIN_MAX):
                pieces.append(piece)
            self.eof = True
        except ssl.SSLWantReadError:
            if self._sink.pending and self._object.version() == "TLSv1.2":
                # OpenSSL would go on, and its warnings for a flood of attempts would fill the sink.
                self.failure = TlsError("protocol", "TLS failed: no renegotiation")
        except ssl.SSLZeroReturnError:
            self.eof = True
        except ssl.SSLError as error:
            self.failure = TlsError("protocol", f"TLS failed: {_reason(error)}")
        if self.failure is not None and not pieces:
            raise self.failure
        return b"".join(pieces)

    def seal(self, plain: bytes) -> bytes:
        """Return the wire bytes for `plain`."""
        try:
            if plain:
                self._object.write(plain)
        except ssl.SSLError as error:
            raise TlsError("protocol", f"TLS failed: {_reason(error)}") from None
        return self._sink.read()

    def close_notify(self) -> bytes:
        """Return the wire bytes that announce the end of our output; an alert after a failure."""
        try:
            if self.failure is None:
                self._object.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError("closed", f"TLS failed: {_reason(error)}") from None
        return self._sink.read()


def channel_of(handshake: Handshake) -> Channel:
    """Return the channel of a finished handshake."""
    return handshake.channel()


def certificate_is_for(certificate: x509.Certificate, name: str) -> bool:
    """Return whether one of the alternative names is `name`: a host name or an address.

    A wildcard stands for one whole label, the first (RFC 6125 §6.4.3).
    """
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    if is_address(name):
        return ip_address(name) in found.get_values_for_type(x509.IPAddress)
    try:
        asked = host_bytes(name).decode().lower().removesuffix(".")
    except UnicodeError:
        return False
    known = {dns.lower().removesuffix(".") for dns in found.get_values_for_type(x509.DNSName)}
    _, _, parent = asked.partition(".")
    return asked in known or ("." in parent and f"*.{parent}" in known)


def _chain(connection: ssl.SSLObject) -> list[bytes]:
    """Return the certificates in DER as the server sent them."""
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13
        return list(connection.get_unverified_chain())
    own = connection._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]
    return [certificate.public_bytes(ssl._ssl.ENCODING_DER) for certificate in own]  # type: ignore[attr-defined]


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
