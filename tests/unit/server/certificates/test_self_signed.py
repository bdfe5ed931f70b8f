"""The self-signed certificate of an address, and its files."""

import datetime
import hashlib
import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastderp.errors import CertificateError
from fastderp.server.certificates.manual import certificate_files, manual_certificate


@pytest.mark.parametrize("address", ["127.0.0.1", "2001:db8::1"])
def test_an_address_without_files_gets_a_self_signed_pair(tmp_path: Path, address: str) -> None:
    directory = tmp_path / "deep" / "certs"
    made = manual_certificate(directory, address)
    crt, key = certificate_files(directory, address)

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
    first = manual_certificate(tmp_path, "127.0.0.1")
    assert manual_certificate(tmp_path, "127.0.0.1") == first


def test_two_first_starts_at_once_agree_on_one_certificate(tmp_path: Path) -> None:
    code = (
        "import sys,pathlib;"
        "from fastderp.server.certificates.manual import manual_certificate as m;"
        "print(m(pathlib.Path(sys.argv[1]),'127.0.0.1').pin)"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert len({start.communicate()[0] for start in starts}) == 1
    assert all(start.returncode == 0 for start in starts)


def test_a_read_only_directory_with_a_certificate_is_served(tmp_path: Path) -> None:
    first = manual_certificate(tmp_path, "127.0.0.1")
    tmp_path.chmod(0o500)
    assert manual_certificate(tmp_path, "127.0.0.1") == first


def test_the_printed_node_pins_the_certificate(tmp_path: Path) -> None:
    made = manual_certificate(tmp_path, "127.0.0.1")
    node = {"Name": "custom", "RegionID": 900, "HostName": "127.0.0.1", "CertName": made.pin}
    assert made.derp_node(port=443, stun_port=3478) == json.dumps(node, separators=(",", ":"))
    assert json.loads(made.derp_node(port=8443, stun_port=None)) == node | {
        "DERPPort": 8443,
        "STUNPort": -1,
    }


def test_a_key_left_by_an_interrupted_start_gets_its_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manual_certificate(tmp_path, "127.0.0.1")
    crt, key = certificate_files(tmp_path, "127.0.0.1")
    kept = key.read_bytes()
    crt.unlink()
    manual_certificate(tmp_path, "127.0.0.1")
    assert key.read_bytes() == kept
    assert f"{key} had no certificate: a new one is in {crt}" in caplog.text


@pytest.mark.parametrize("other", ["P-384", "PKCS#8", "certificate"])
def test_a_single_foreign_file_is_not_overwritten(tmp_path: Path, other: str) -> None:
    manual_certificate(tmp_path, "127.0.0.1")
    crt, key = certificate_files(tmp_path, "127.0.0.1")
    if other == "certificate":
        key.unlink()
    else:
        crt.unlink()
        curve = ec.SECP384R1() if other == "P-384" else ec.SECP256R1()
        form = PrivateFormat.PKCS8 if other == "PKCS#8" else PrivateFormat.TraditionalOpenSSL
        private = ec.generate_private_key(curve)
        key.write_bytes(private.private_bytes(Encoding.PEM, form, NoEncryption()))
    [left] = tmp_path.iterdir()
    before = left.read_bytes()
    with pytest.raises(CertificateError, match=r"exists without 127\.0\.0\.1\."):
        manual_certificate(tmp_path, "127.0.0.1")
    assert left.read_bytes() == before


FILL_AND_START = """
import os, subprocess, sys
from pathlib import Path
from fastderp.errors import CertificateError
from fastderp.server.certificates.manual import manual_certificate

directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", directory], check=True)
ballast = directory / "ballast"
room_for_one = os.statvfs(directory).f_bavail - 1
ballast.write_bytes(bytes(room_for_one * os.statvfs(directory).f_bsize))
try:
    manual_certificate(directory, "127.0.0.1")
except CertificateError as error:
    print(error)
print(sorted(os.listdir(directory)))
ballast.unlink()
manual_certificate(directory, "127.0.0.1")
print(sorted(os.listdir(directory)))
"""


@pytest.mark.root
def test_a_full_disk_between_the_two_files_affects_no_later_start(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", FILL_AND_START, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"cannot keep certificates in {tmp_path}: No space left on device",
        "['ballast']",
        "['127.0.0.1.crt', '127.0.0.1.key']",
    ]
