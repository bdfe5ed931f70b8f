"""The form of the metacert."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from fastderp.server.certificates.metacert import meta_cert

PUBLIC_HEX = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
def test_the_metacert_carries_the_relays_key_and_nothing_else() -> None:
    certificate = x509.load_der_x509_certificate(meta_cert(PUBLIC_HEX))
    [name] = certificate.subject
    assert name.oid == NameOID.COMMON_NAME
    assert name.value == "derpkey" + PUBLIC_HEX
    assert certificate.issuer == certificate.subject
    assert certificate.serial_number == 2
    assert certificate.version == x509.Version.v3
    assert [(e.critical, e.value) for e in certificate.extensions] == [
        (True, x509.BasicConstraints(False, None))
    ]
    assert isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)
    certificate.verify_directly_issued_by(certificate)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime == datetime.timedelta(days=60)
    assert certificate.not_valid_before_utc + lifetime / 2 - datetime.datetime.now(
        datetime.UTC
    ) < datetime.timedelta(minutes=1)


def test_each_start_makes_a_new_metacert() -> None:
    assert meta_cert(PUBLIC_HEX) != meta_cert(PUBLIC_HEX)
