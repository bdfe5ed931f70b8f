"""Reading and making certificates."""

import base64
import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from fastderp.tls.errors import TlsError
from fastderp.tls.x509 import PrivateKey, chain_from_pem, read_leaf

START = datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
END = START + datetime.timedelta(seconds=1)  # 2050: in a certificate it has another form
START_S, END_S = int(START.timestamp()), int(END.timestamp())
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(
    *extensions: x509.ExtensionType, issuer: str = "leaf", key: ec.EllipticCurvePrivateKey = EC_KEY
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder(name(issuer), name("leaf"), key.public_key(), 7, START, END)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def der_of(made: x509.Certificate) -> bytes:
    return made.public_bytes(Encoding.DER)


def test_the_content_of_a_leaf_is_read() -> None:
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("a.example"),
            x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
            x509.RFC822Name("mail@a.example"),
            x509.DNSName("*.a.example"),
            x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        ]
    )
    leaf = read_leaf(der_of(certificate(names)))
    assert leaf.dns_names == ["a.example", "*.a.example"]
    assert leaf.addresses == [
        ipaddress.ip_address(text).packed for text in ("192.0.2.1", "2001:db8::1")
    ]
    assert (leaf.not_before, leaf.not_after) == (START_S, END_S)
    assert leaf.key_type == "prime256v1" and leaf.is_self_signed


def test_a_leaf_without_names_of_another_issuer_is_read() -> None:
    leaf = read_leaf(der_of(certificate(issuer="authority")))
    assert (leaf.dns_names, leaf.addresses, leaf.is_self_signed) == ([], [], False)


@pytest.mark.parametrize(
    "value", [b"", b"\x04\x00", b"\x30\x05\x82\x07abc"], ids=["empty", "another type", "cut off"]
)
def test_malformed_alternative_names_are_refused(value: bytes) -> None:
    oid = x509.SubjectAlternativeName.oid
    made = certificate(x509.UnrecognizedExtension(oid, value))
    with pytest.raises(TlsError, match="malformed subjectAltName"):
        read_leaf(der_of(made))


def test_every_certificate_of_a_text_is_read_and_other_blocks_are_skipped() -> None:
    ders = [der_of(certificate()), der_of(certificate(issuer="authority"))]
    key = EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    text = b"# the leaf\r\n" + pem("CERTIFICATE", ders[0]) + key + pem("CERTIFICATE", ders[1])
    assert chain_from_pem(text) == ders


def pem(label: str, der: bytes) -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00\xff" * 40,
        pem("CERTIFICATE", b"junk"),
        pem("CERTIFICATE", der_of(certificate())) + pem("CERTIFICATE", b"junk"),
        pem("CERTIFICATE", der_of(certificate()))[:-40],
        pem("PRIVATE KEY", b"junk"),
    ],
    ids=["empty", "binary", "junk", "junk after a leaf", "cut off", "no certificate"],
)
def test_a_text_with_a_malformed_certificate_or_none_is_refused(text: bytes) -> None:
    with pytest.raises(TlsError, match="not a PEM certificate chain"):
        chain_from_pem(text)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(EC_KEY, id="P-256"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_a_key_survives_reading_and_writing(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    written = PrivateKey.from_pem(key.private_bytes(*form)).der()
    assert load_der_private_key(written, None).private_bytes(*form) == key.private_bytes(*form)


def test_a_key_knows_its_certificate() -> None:
    form = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    key = PrivateKey.from_pem(EC_KEY.private_bytes(*form))
    other = certificate(key=ec.generate_private_key(ec.SECP256R1()))
    assert key.belongs_to(der_of(certificate())) and not key.belongs_to(der_of(other))


@pytest.mark.parametrize("text", [b"", b"\x30\x00", pem("PRIVATE KEY", b"junk")])
def test_a_text_without_a_key_is_refused(text: bytes) -> None:
    with pytest.raises(TlsError):
        PrivateKey.from_pem(text)


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_made_certificate_has_what_was_asked_for(kind: str) -> None:
    key = PrivateKey.generate_p256() if kind == "p256" else PrivateKey.generate_ed25519()
    der = key.self_signed(
        "name " * 20,  # more than X.520 allows
        serial=(1 << 64) - 1,
        not_before=START_S,
        not_after=END_S,
        extensions={"basicConstraints": "critical,CA:FALSE", "subjectAltName": "IP:2001:db8::1"},
    )
    made = x509.load_der_x509_certificate(der)
    made.verify_directly_issued_by(made)
    assert [attribute.value for attribute in made.subject] == ["name " * 20]
    assert made.serial_number == (1 << 64) - 1 and made.version is x509.Version.v3
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (START, END)
    assert [(e.critical, e.value) for e in made.extensions] == [
        (True, x509.BasicConstraints(ca=False, path_length=None)),
        (
            False,
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("2001:db8::1"))]),
        ),
    ]
    assert key.belongs_to(der)


def test_an_extension_that_the_library_does_not_understand_is_refused() -> None:
    with pytest.raises(TlsError, match="cannot make the certificate"):
        PrivateKey.generate_p256().self_signed(
            "x",
            serial=1,
            not_before=START_S,
            not_after=END_S,
            extensions={"keyUsage": "everything"},
        )
