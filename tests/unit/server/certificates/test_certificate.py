"""Certificates: the metacert, the files of manual mode, and what is refused."""

import datetime
import hashlib
import ipaddress
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastderp.errors import EX_CONFIG, CertificateError
from fastderp.server.certificates import certificate as certs

PUBLIC_HEX = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


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
        key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    )
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    (directory / f"{stem}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / f"{stem}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    )


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
def test_the_metacert_carries_the_relays_key_and_nothing_else() -> None:
    certificate = x509.load_der_x509_certificate(certs.meta_cert(PUBLIC_HEX))
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


def test_every_start_makes_another_metacert() -> None:
    assert certs.meta_cert(PUBLIC_HEX) != certs.meta_cert(PUBLIC_HEX)


@pytest.mark.parametrize("address", ["127.0.0.1", "2001:db8::1"])
def test_an_address_without_files_gets_a_self_signed_pair(tmp_path: Path, address: str) -> None:
    directory = tmp_path / "deep" / "certs"
    made = certs.manual_certificate(directory, address)
    crt, key = certs.certificate_files(directory, address)

    assert directory.stat().st_mode & 0o777 == 0o700
    assert crt.stat().st_mode & 0o777 == 0o644
    assert key.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in directory.iterdir()} == {crt.name, key.name}
    assert key.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")

    leaf = x509.load_pem_x509_certificate(crt.read_bytes())
    ip = ipaddress.ip_address(address)
    assert [attribute.value for attribute in leaf.subject] == [str(ip)]
    assert leaf.serial_number.bit_length() <= 128
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == datetime.timedelta(days=365)
    public = leaf.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp256r1"
    extensions = {type(e.value): (e.critical, e.value) for e in leaf.extensions}
    assert extensions.pop(x509.BasicConstraints) == (True, x509.BasicConstraints(False, None))
    assert extensions.pop(x509.ExtendedKeyUsage)[1] == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH]
    )
    assert extensions.pop(x509.SubjectAlternativeName)[1] == x509.SubjectAlternativeName(
        [x509.IPAddress(ip)]
    )
    _, usage = extensions.pop(x509.KeyUsage)
    assert isinstance(usage, x509.KeyUsage) and usage.digital_signature and usage.key_encipherment
    assert not usage.key_cert_sign and not extensions
    leaf.verify_directly_issued_by(leaf)

    assert made.required_sni is None
    assert made.pin == "sha256-raw:" + hashlib.sha256(made.chain[0]).hexdigest()


def test_a_second_start_keeps_the_certificate(tmp_path: Path) -> None:
    first = certs.manual_certificate(tmp_path, "127.0.0.1")
    assert certs.manual_certificate(tmp_path, "127.0.0.1") == first


def test_two_first_starts_at_once_agree_on_one_certificate(tmp_path: Path) -> None:
    code = "import sys,pathlib;from fastderp.server.certificates.certificate import manual_certificate as m;print(m(pathlib.Path(sys.argv[1]),'127.0.0.1').pin)"
    starts = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert len({start.communicate()[0] for start in starts}) == 1
    assert all(start.returncode == 0 for start in starts)


def test_a_read_only_directory_serves_what_is_there(tmp_path: Path) -> None:
    first = certs.manual_certificate(tmp_path, "127.0.0.1")
    tmp_path.chmod(0o500)
    assert certs.manual_certificate(tmp_path, "127.0.0.1") == first


def test_the_printed_node_pins_the_certificate(tmp_path: Path) -> None:
    made = certs.manual_certificate(tmp_path, "127.0.0.1")
    node = {"Name": "custom", "RegionID": 900, "HostName": "127.0.0.1", "CertName": made.pin}
    assert made.derp_node(port=443, stun_port=3478) == json.dumps(node, separators=(",", ":"))
    assert json.loads(made.derp_node(port=8443, stun_port=None)) == node | {
        "DERPPort": 8443,
        "STUNPort": -1,
    }


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
    assert certs.certificate_files(Path("/c"), hostname) == (
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
    loaded = certs.manual_certificate(tmp_path, hostname)
    assert loaded.required_sni == hostname


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_the_usual_kinds_of_key_load(tmp_path: Path, key: Key) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), key=key)
    loaded = certs.manual_certificate(tmp_path, "a.example")
    pem = b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in loaded.chain)
    assert pem.strip() == (tmp_path / "a.example.crt").read_bytes().strip()
    assert loaded.key == key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def test_a_chain_keeps_its_order(tmp_path: Path) -> None:
    write_pair(tmp_path, "issuer", names=("issuer.example",))
    write_pair(tmp_path, "a.example", names=("a.example",))
    with (tmp_path / "a.example.crt").open("ab") as file:
        file.write(b"# the issuer\n" + (tmp_path / "issuer.crt").read_bytes())
    chain = certs.manual_certificate(tmp_path, "a.example").chain
    issuer = ssl.PEM_cert_to_DER_cert((tmp_path / "issuer.crt").read_text())
    assert len(chain) == 2
    assert chain[1] == issuer


def refuse(directory: Path, hostname: str, message: str) -> None:
    with pytest.raises(CertificateError, match=message) as caught:
        certs.manual_certificate(directory, hostname)
    assert caught.value.exit_code == EX_CONFIG
    assert "\n" not in str(caught.value)


def test_a_name_without_files_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "a.example", r"certificate for a\.example: .*/a\.example\.crt does not exist")
    assert not list(tmp_path.iterdir())


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",))
    (tmp_path / "a.example.key").unlink()
    refuse(tmp_path, "a.example", r"certificate key: .*\.key does not exist")


@pytest.mark.parametrize("lost", ["crt", "key"])
def test_half_a_self_signed_pair_is_not_overwritten(tmp_path: Path, lost: str) -> None:
    certs.manual_certificate(tmp_path, "127.0.0.1")
    (tmp_path / f"127.0.0.1.{lost}").unlink()
    [left] = tmp_path.iterdir()
    before = left.read_bytes()
    refuse(tmp_path, "127.0.0.1", rf"exists without 127\.0\.0\.1\.{lost}")
    assert left.read_bytes() == before


def test_a_certificate_for_somebody_else_is_refused(tmp_path: Path) -> None:
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


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), age_days=40)
    refuse(tmp_path, "a.example", r"a\.example\.crt expired on \d{4}-\d\d-\d\d")


def test_an_expired_certificate_of_an_address_says_how_it_is_made_anew(tmp_path: Path) -> None:
    write_pair(tmp_path, "10.0.0.1", addresses=("10.0.0.1",), age_days=40)
    refuse(
        tmp_path,
        "10.0.0.1",
        r"10\.0\.0\.1\.crt expired on [\d-]+: delete it and 10\.0\.0\.1\.key to have both made anew, and put",
    )


def test_a_certificate_from_the_future_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.example", names=("a.example",), age_days=-2)
    refuse(tmp_path, "a.example", "is not valid before .* clock")


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
    certs.manual_certificate(tmp_path, "127.0.0.1")
    key = tmp_path / "127.0.0.1.key"
    secret = load_pem_private_key(key.read_bytes(), None)
    assert secret is not None
    body = key.read_text().splitlines()[1]
    key.write_text(f"-----BEGIN EC PRIVATE KEY-----\n{body}\n")
    with pytest.raises(CertificateError) as caught:
        certs.manual_certificate(tmp_path, "127.0.0.1")
    assert body not in str(caught.value)
