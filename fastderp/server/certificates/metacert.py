"""Makes the metacert, which announces the relay's key to TLS 1.3 clients (PROTOCOL §10).

Pure functions; any thread.
"""

from __future__ import annotations

import datetime
import warnings

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fastderp.wire.protocol import PROTOCOL_VERSION

PREFIX = "derpkey"
VALIDITY = datetime.timedelta(days=30)


def meta_cert(public_key_hex: str) -> bytes:
    """Make the metacert of a relay, in DER (PROTOCOL §10).

    `public_key_hex` is the relay's public key, 64 lower-case hex digits. The signing key is
    discarded: clients read the name and verify nothing.
    """
    signer = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([_common_name(PREFIX + public_key_hex)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(PROTOCOL_VERSION)
        .public_key(signer.public_key())
        .not_valid_before(now - VALIDITY)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, None)
    )
    return certificate.public_bytes(Encoding.DER)


def _common_name(text: str) -> x509.NameAttribute[str]:
    """Make the common name that clients expect; its 71 characters exceed the limit of X.520."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False)
