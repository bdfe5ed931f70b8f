"""The files of -certmode manual: reading and refusals."""

import datetime
import ipaddress
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from fastderp.errors import EX_CONFIG, CertificateError
from fastderp.server.certificates.manual import certificate_files, manual_certificate

Key = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | dsa.DSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def write_pair(
    directory: Path,
    stem: str,
    *,
    names: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
    key: Key | None = None,
    age_days: int = 1,
    lifetime_days: int = 30,
    passphrase: bytes | None = None,
) -> None:
    """Write `<stem>.crt` and `<stem>.key` for the given alternative names."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age_days)
    san = [x509.DNSName(name) for name in names] + [
        x509.IPAddress(ipaddress.ip_address(a)) for a in addresses
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(7)
        .public_key(key.public_key())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=lifetime_days))
    )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    certificate = builder.sign(
        key,
        None
        if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
        else hashes.SHA256(),
    )
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    (directory / f"{stem}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / f"{stem}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    )


@pytest.mark.parametrize(
    ("hostname", "stem"),
    [
        ("derp.example.com", "derp.example.com"),
        ("::1", "1"),
        ("../etc/x_y", "..etcxy"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_file_names_keep_only_safe_characters(hostname: str, stem: str) -> None:
    assert certificate_files(Path("/c"), hostname) == (
        Path(f"/c/{stem}.crt"),
        Path(f"/c/{stem}.key"),
    )


@pytest.mark.parametrize(
    ("names", "hostname"),
    [
        (("derp.example.com",), "derp.example.com"),
        (("other.example", "DERP.Example.com"), "derp.example.COM"),
        (("*.example.com",), "derp.example.com"),
    ],
)
def test_a_name_in_the_certificate_is_served_for_that_sni(
    tmp_path: Path, names: tuple[str, ...], hostname: str
) -> None:
    write_pair(tmp_path, hostname, names=names)
    loaded = manual_certificate(tmp_path, hostname)
    assert loaded.required_sni == hostname


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_the_usual_kinds_of_key_load(tmp_path: Path, key: Key) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), key=key)
    loaded = manual_certificate(tmp_path, "a.example")
    pem = b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in loaded.chain)
    assert pem.strip() == (tmp_path / "a.example.crt").read_bytes().strip()
    kept = load_der_private_key(loaded.key, None)
    form = Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    assert kept.private_bytes(*form) == key.private_bytes(*form)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        pytest.param(ec.generate_private_key(ec.SECP256K1()), "secp256k1", id="secp256k1"),
        pytest.param(ec.generate_private_key(ec.BrainpoolP256R1()), "brainpoolP256r1", id="brain"),
        pytest.param(ed448.Ed448PrivateKey.generate(), "ED448", id="Ed448"),
        pytest.param(dsa.generate_private_key(1024), "dsaEncryption", id="DSA"),
    ],
)
def test_a_key_of_an_unsupported_type_is_refused(tmp_path: Path, key: Key, kind: str) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), key=key)
    refuse(tmp_path, "a.example", f"a key of type {kind}, which TLS clients cannot use; use ECDSA")


def test_a_byte_order_mark_in_front_of_the_files_is_skipped(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    loaded = manual_certificate(tmp_path, "a.example")
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert manual_certificate(tmp_path, "a.example") == loaded


def test_a_chain_keeps_its_order(tmp_path: Path) -> None:
    write_pair(tmp_path, "issuer", names=("issuer.example",))
    write_pair(tmp_path, "a.example", names=("a.example",))
    with (tmp_path / "a.example.crt").open("ab") as file:
        file.write(b"# the issuer\n" + (tmp_path / "issuer.crt").read_bytes())
    chain = manual_certificate(tmp_path, "a.example").chain
    issuer = ssl.PEM_cert_to_DER_cert((tmp_path / "issuer.crt").read_text())
    assert len(chain) == 2
    assert chain[1] == issuer


def refuse(directory: Path, hostname: str, message: str) -> None:
    with pytest.raises(CertificateError, match=message) as caught:
        manual_certificate(directory, hostname)
    assert caught.value.exit_code == EX_CONFIG
    assert "\n" not in str(caught.value)


def test_a_name_without_files_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "a.example", r"certificate for a\.example: .*/a\.example\.crt does not exist")
    assert not list(tmp_path.iterdir())


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    (tmp_path / "a.example.key").unlink()
    refuse(tmp_path, "a.example", r"certificate key: .*\.key does not exist")


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("b.example", "*.c.example"), addresses=("10.0.0.1",))
    refuse(
        tmp_path, "a.example", r"is for b\.example, \*\.c\.example, 10\.0\.0\.1, not for a\.example"
    )


@pytest.mark.parametrize(
    ("pattern", "hostname"),
    [
        ("*.example.com", "example.com"),
        ("*.example.com", "a.b.example.com"),
        ("*", "localhost"),
        ("a*.x.com", "ab.x.com"),
    ],
)
def test_a_wildcard_covers_one_whole_label(tmp_path: Path, pattern: str, hostname: str) -> None:
    write_pair(tmp_path, hostname, names=(pattern,))
    refuse(tmp_path, hostname, "not for")


def test_an_address_needs_an_address_in_the_certificate(tmp_path: Path) -> None:
    write_pair(tmp_path, "10.0.0.1", names=("10.0.0.1",))
    refuse(tmp_path, "10.0.0.1", r"not for 10\.0\.0\.1")


def test_a_certificate_without_alternative_names_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "test")
    refuse(tmp_path, "test", "is for no names at all, not for test")


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "b", names=("b",))
    write_pair(tmp_path, "a.example", names=("a.example",))
    (tmp_path / "b.key").replace(tmp_path / "a.example.key")
    refuse(tmp_path, "a.example", "does not belong to the certificate")


def test_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), passphrase=b"secret")
    refuse(tmp_path, "a.example", r"a\.example\.key is encrypted")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff" * 40, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
@pytest.mark.parametrize("suffix", ["crt", "key"])
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    (tmp_path / f"a.example.{suffix}").write_bytes(content)
    refuse(tmp_path, "a.example", rf"a\.example\.{suffix} is not a PEM")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    os.truncate(tmp_path / "a.example.crt", 1 << 40)
    refuse(tmp_path, "a.example", "larger than 1 MiB")


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.example.crt").mkdir()
    refuse(tmp_path, "a.example", "cannot read .*: Is a directory")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").write_text("")
    refuse(tmp_path / "certs", "127.0.0.1", "cannot keep certificates in .*: File exists")


def test_an_unreadable_key_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    key = tmp_path / "a.example.key"
    key.chmod(0)
    if os.access(key, os.R_OK):
        pytest.skip("this user reads every file")
    refuse(tmp_path, "a.example", "cannot read .*: Permission denied")


def test_error_texts_never_quote_a_key(tmp_path: Path) -> None:
    manual_certificate(tmp_path, "127.0.0.1")
    key = tmp_path / "127.0.0.1.key"
    secret = load_pem_private_key(key.read_bytes(), None)
    assert secret is not None
    body = key.read_text().splitlines()[1]
    key.write_text(f"-----BEGIN EC PRIVATE KEY-----\n{body}\n")
    with pytest.raises(CertificateError) as caught:
        manual_certificate(tmp_path, "127.0.0.1")
    assert body not in str(caught.value)
