"""The proofs of a name or an address that a CA asks for during an order (RFC 8555 §8.3, RFC 8737).

The ordering thread publishes them, the loop reads them: every change is one operation on a dict.
DNS records are set by the operator's command.
"""

from __future__ import annotations

import datetime
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastderp.errors import IssuanceError
from fastderp.server.certificates.acme.dns_hook import DnsHook
from fastderp.server.certificates.acme.settings import ALPN_PROTOCOL, HTTP_PREFIX
from fastderp.tls.context import ServerContext

HTTP_01 = "http-01"
TLS_ALPN_01 = "tls-alpn-01"
DNS_01 = "dns-01"

_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_VALIDITY = datetime.timedelta(days=1)


class Challenges:
    """The challenges under way.

    dns_hook: the command that sets DNS records, for DNS_01; () without.
    """

    def __init__(self, dns_hook: tuple[str, ...] = ()) -> None:
        self._dns_hook = DnsHook(dns_hook)
        self._answers: dict[str, str] = {}
        self._contexts: dict[str, ServerContext] = {}

    def publish(self, method: str, name: str, key_authorization: str) -> None:
        """Show the key authorization of a name or an address.

        Raises IssuanceError, with nothing shown, when the command for DNS_01 fails.
        """
        if method == DNS_01:
            self._set_record(name, key_authorization)
        elif method == HTTP_01:
            self._answers[_token(key_authorization)] = key_authorization
        else:
            self._contexts[name] = _tls_alpn_context(name, key_authorization)

    def _set_record(self, name: str, key_authorization: str) -> None:
        try:
            self._dns_hook.present(name, key_authorization)
        except IssuanceError:
            self._dns_hook.clean_up(name, key_authorization)
            raise

    def withdraw(self, name: str, key_authorization: str) -> None:
        """Stop showing it."""
        self._dns_hook.clean_up(name, key_authorization)
        self._answers.pop(_token(key_authorization), None)
        self._contexts.pop(name, None)

    def close(self) -> None:
        """End the command that sets DNS records, and remove these. Blocks for seconds."""
        self._dns_hook.close()

    def http_answer(self, path: str) -> str | None:
        """Return the body for a path below HTTP_PREFIX; None for an unknown token."""
        return self._answers.get(path.removeprefix(HTTP_PREFIX))

    def tls_context(self, name: str) -> ServerContext | None:
        """Return the certificate for a client that asks for this name with ALPN_PROTOCOL.

        None unless the name is being validated.
        """
        return self._contexts.get(name)


def _token(key_authorization: str) -> str:
    return key_authorization.partition(".")[0]


def _tls_alpn_context(name: str, key_authorization: str) -> ServerContext:
    """Make the self-signed certificate of RFC 8737 §3."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ACME challenge")])
    now = datetime.datetime.now(datetime.UTC)
    digest = hashlib.sha256(key_authorization.encode()).digest()
    octet_string = bytes([4, len(digest)]) + digest
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .not_valid_before(now - _VALIDITY)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, octet_string), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return ServerContext([certificate.public_bytes(Encoding.DER)], key_der, alpn=[ALPN_PROTOCOL])
