"""X.509 certificates and their keys: reads them from PEM, and makes self-signed ones.

The crypto library of the TLS connections does the work. Any thread.
"""

from collections.abc import Mapping
from typing import NamedTuple

class Leaf(NamedTuple):
    """The content of a certificate that a relay presents.

    Args:
        sha256: the hash of its DER, for pins.
        dns_names: the host names it is for, which may have a wildcard.
        addresses: the IP addresses it is for, as bytes in network order.
        not_before, not_after: Unix times, the bounds of its validity.
        key_type: the curve of its key, such as `prime256v1`, or the algorithm of a key without
            one, such as `rsaEncryption` or `ED25519`; a dotted number if the library has no name.
        is_self_signed: whether its subject has issued it.
    """

    sha256: bytes
    dns_names: list[str]
    addresses: list[bytes]
    not_before: int
    not_after: int
    key_type: str
    is_self_signed: bool

def chain_from_pem(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM text in DER, in its order, at least one.

    Other text between them is skipped. Raises TlsError for a malformed certificate and for none.
    """

def read_leaf(der: bytes) -> Leaf:
    """Read a certificate in DER. Raises TlsError when it is malformed."""

class PrivateKey:
    """A private key. It never changes and shows no secret in its repr."""

    @staticmethod
    def from_pem(pem: bytes) -> PrivateKey:
        """Read the first private key of a PEM text.

        Raises TlsError for a malformed or encrypted key, and for a type that the library lacks.
        """

    @staticmethod
    def generate_p256() -> PrivateKey:
        """Make a new ECDSA P-256 key. Raises TlsError without randomness or memory."""

    @staticmethod
    def generate_ed25519() -> PrivateKey:
        """Make a new Ed25519 key. Raises TlsError without memory."""

    def der(self) -> bytes:
        """Return the secret key in DER: SEC 1 for ECDSA, PKCS#1 for RSA, PKCS#8 for Ed25519."""

    def belongs_to(self, der: bytes) -> bool:
        """Whether the certificate in DER has this key's public half. Raises TlsError."""

    def self_signed(
        self,
        common_name: str,
        *,
        serial: int,
        not_before: int,
        not_after: int,
        extensions: Mapping[str, str],
    ) -> bytes:
        """Make a certificate for this key, signed by itself; return its DER.

        Args:
            common_name: the only attribute of subject and issuer; it may exceed the 64 characters
                of X.520.
            serial: at most 64 bits.
            not_before, not_after: Unix times.
            extensions: names and values as in OpenSSL's x509v3_config, of `keyUsage`,
                `subjectAltName`, `basicConstraints` and `extendedKeyUsage`.

        Raises TlsError for a value that the library does not understand.
        """
