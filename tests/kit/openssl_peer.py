"""A peer that calls OpenSSL through ctypes: tickets, KeyUpdates, padding, record sizes.

Python's ssl module cannot send a KeyUpdate or choose record sizes, so this calls its OpenSSL
directly.
"""

import _ssl
import ctypes
from typing import Any, Self

from tests.kit.certificates import Certificate

_lib = ctypes.CDLL(_ssl.__file__)  # loads libssl and libcrypto
_PEER = {name: getattr(_lib, name) for name in ("SSL_new", "SSL_CTX_new", "BIO_new", "BIO_s_mem")}
for _function in (*_PEER.values(), _lib.TLS_server_method, _lib.TLS_client_method):
    _function.restype = ctypes.c_void_p

_EVP_PKEY_EC = 408
_WANT_READ, _ZERO_RETURN = 2, 6
_CTRL_MAX_SEND_FRAGMENT, _CTRL_MIN_VERSION, _CTRL_MAX_VERSION, _CTRL_PENDING = 52, 123, 124, 10


def openssl_errors() -> int:
    """Return the number of the oldest error in this thread's OpenSSL queue, 0 for none."""
    return int(_lib.ERR_peek_error())


class PeerError(Exception):
    """OpenSSL refused its input or a call."""


class OpenSSLPeer:
    """One TLS connection in memory; it is the server if it has a certificate."""

    def __init__(
        self,
        certificate: Certificate | None = None,
        *,
        suite: str | None = None,
        tickets: int = 2,
        version: int = 0x0304,
    ) -> None:
        method = _lib.TLS_server_method() if certificate else _lib.TLS_client_method()
        self._context = ctypes.c_void_p(_PEER["SSL_CTX_new"](ctypes.c_void_p(method)))
        for control in (_CTRL_MIN_VERSION, _CTRL_MAX_VERSION):
            _lib.SSL_CTX_ctrl(self._context, control, ctypes.c_long(version), None)
        _lib.SSL_CTX_set_num_tickets(self._context, ctypes.c_size_t(tickets))
        if suite:
            _require(_lib.SSL_CTX_set_ciphersuites(self._context, suite.encode()))
        if certificate:
            der, key = certificate.der, certificate.key_der
            _require(_lib.SSL_CTX_use_certificate_ASN1(self._context, len(der), der))
            _require(
                _lib.SSL_CTX_use_PrivateKey_ASN1(
                    _EVP_PKEY_EC, self._context, key, ctypes.c_long(len(key))
                )
            )
        self._ssl = ctypes.c_void_p(_PEER["SSL_new"](self._context))
        memory = ctypes.c_void_p(_PEER["BIO_s_mem"]())
        self._source, self._sink = (ctypes.c_void_p(_PEER["BIO_new"](memory)) for _ in range(2))
        _lib.SSL_set_bio(self._ssl, self._source, self._sink)
        (_lib.SSL_set_accept_state if certificate else _lib.SSL_set_connect_state)(self._ssl)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        _lib.SSL_free(self._ssl)
        _lib.SSL_CTX_free(self._context)

    def feed(self, data: bytes) -> None:
        if data:
            _require(_lib.BIO_write(self._source, data, len(data)) == len(data))

    def take_output(self) -> bytes:
        size = _lib.BIO_ctrl(self._sink, _CTRL_PENDING, ctypes.c_long(0), None)
        buffer = ctypes.create_string_buffer(size + 1)
        _lib.BIO_read(self._sink, buffer, size)
        return buffer.raw[:size]

    def step(self) -> bool:
        """Continue the handshake; return whether it is done."""
        return self._result(_lib.SSL_do_handshake(self._ssl)) > 0

    def write(self, data: bytes) -> bytes:
        """Return OpenSSL's pending records, then the records that carry `data`."""
        written = _lib.SSL_write(self._ssl, data, len(data)) if data else 0
        _require(written == len(data))
        return self.take_output()

    def read(self, wire: bytes = b"") -> bytes:
        """Return the data that OpenSSL reads from `wire`; raise PeerError when it refuses."""
        self.feed(wire)
        plain = b""
        buffer = ctypes.create_string_buffer(16384)
        while (size := self._result(_lib.SSL_read(self._ssl, buffer, 16384))) > 0:
            plain += buffer.raw[:size]
        return plain

    def key_update(self, *, ask: bool) -> None:
        """Change the sending key before the next write, and request a change of the peer's key."""
        _require(_lib.SSL_key_update(self._ssl, 1 if ask else 0))

    def pad_to(self, block: int) -> None:
        """Pad records to multiples of `block` bytes."""
        _require(_lib.SSL_set_block_padding(self._ssl, ctypes.c_size_t(block)))

    def fragment(self, size: int) -> None:
        """Limit records to `size` bytes of data."""
        _require(_lib.SSL_ctrl(self._ssl, _CTRL_MAX_SEND_FRAGMENT, ctypes.c_long(size), None))

    def renegotiate(self) -> None:
        """Begin a second handshake (TLS 1.2)."""
        _require(_lib.SSL_renegotiate(self._ssl))
        self.step()

    def close_notify(self) -> bytes:
        _lib.SSL_shutdown(self._ssl)
        return self.take_output()

    @property
    def got_close_notify(self) -> bool:
        return bool(_lib.SSL_get_shutdown(self._ssl) & 2)

    def _result(self, result: int) -> int:
        error = _lib.SSL_get_error(self._ssl, result)
        if result <= 0 and error not in (_WANT_READ, _ZERO_RETURN):
            _lib.ERR_clear_error()
            raise PeerError(f"OpenSSL refused: error {error}")
        return result


def _require(ok: Any) -> None:
    if not ok:
        raise PeerError("OpenSSL refused the call")
