"""Certificates from a real CA, Pebble: orders, renewals, storage, failures of the CA."""

from __future__ import annotations

import datetime
import ipaddress
import re
import signal
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.interop.acme_relay import PATIENCE_S, alert, leaf, running
from tests.interop.gokit import GoClient, GoPrograms
from tests.interop.pebble import HTTP_PORT, HTTPS_PORT, NAME, UNUSED_PORT, Pebble
from tests.kit.certificates import self_signed
from tests.kit.command import relay
from tests.kit.relay import eventually

# The first build of Pebble takes a minute and counts for the first test.
pytestmark = pytest.mark.timeout(600)


def keep(ca: Pebble, *, days: tuple[int, int]) -> str:
    """Write an earlier certificate, valid between two days from now; return it in PEM."""
    made = self_signed(NAME, days=days)
    ca.cert_dir.mkdir(mode=0o700)
    chain = ssl.DER_cert_to_PEM_cert(made.der)
    (ca.cert_dir / NAME).write_bytes(made.key_pem + chain.encode())
    return chain


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_first_client_of_a_name_gets_a_certificate_by_tls_alpn_01(ca: Pebble) -> None:
    ca.start(httpPort=UNUSED_PORT)
    with running(ca, "-acme-email", "ops@example.com") as its:
        certificate = leaf(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    assert its.said.count("ordering") == 1
    assert {path.name: mode(path) for path in ca.cert_dir.iterdir()} == {
        NAME: 0o600,
        "acme_account+key": 0o600,
    }
    kept = (ca.cert_dir / NAME).read_text()
    assert kept.startswith("-----BEGIN EC PRIVATE KEY-----")
    assert kept.count("BEGIN CERTIFICATE") == 2, "the leaf and its issuer"


def test_http_01_is_used_when_the_ca_cannot_reach_the_tls_port(ca: Pebble) -> None:
    ca.start(tlsPort=UNUSED_PORT)
    with running(ca):
        assert leaf(ca)


def test_the_address_of_a_connection_gets_a_short_lived_certificate(ca: Pebble) -> None:
    ca.start()
    with running(ca, "-acme-ip-certs") as its:
        certificate = leaf(ca, ca.address)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(ca.address)]
        assert (
            certificate.not_valid_after_utc - certificate.not_valid_before_utc
            < datetime.timedelta(days=7)
        )
        assert leaf(ca, ca.address) == certificate
        assert leaf(ca) != certificate, "the name has one of its own"
    assert its.said.count("ordering") == 2
    assert {path.name for path in ca.cert_dir.iterdir()} == {
        f"{ca.address}.crt", f"{ca.address}.key", "acme-account.key", NAME, "acme_account+key",
    }  # fmt: skip
    assert {mode(path) for path in ca.cert_dir.iterdir()} == {0o600}


def test_an_account_is_bound_where_the_ca_requires_it(ca: Pebble) -> None:
    key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    ca.start(externalAccountBindingRequired=True, externalAccountMACKeys={"kid-1": key})
    account = (
        "-certmode",
        "gcp",
        "-acme-eab-kid",
        "kid-1",
        "-acme-eab-key",
        key,
        "-acme-email",
        "ops@example.com",
    )
    with running(ca, *account):
        assert leaf(ca)


async def test_a_go_client_waits_for_the_first_certificate_and_starts_fast(
    ca: Pebble, go_programs: GoPrograms, tmp_path: Path
) -> None:
    ca.start()
    root = tmp_path / "root.pem"
    root.write_text(ca.root)
    with running(ca, "-acme-ip-certs") as its:
        url = f"https://{ca.address}:{HTTPS_PORT}/derp"
        for _ in range(2):
            async with await GoClient.start(
                go_programs.derpkit, "-url", url, "-root", str(root)
            ) as client:
                assert client.ready["tls"] == "1.3"
                assert client.ready["fast_start"]
    assert its.said.count("ordering") == 1


def test_a_missing_account_with_the_ca_is_an_error(ca: Pebble) -> None:
    ca.start(externalAccountBindingRequired=True)
    with running(ca) as its:
        assert "internal error" in alert(ca)
    assert (
        f"{NAME}: no certificate from {ca.address}: the CA needs an external account:"
        " set -acme-eab-kid" in its.said
    )


def test_a_certificate_is_renewed_before_it_ends_and_keeps_its_key(ca: Pebble) -> None:
    ca.start()
    old = x509.load_pem_x509_certificate(keep(ca, days=(-20, 5)).encode())
    with running(ca) as its:
        eventually(lambda: "BEGIN EC PRIVATE KEY" in (ca.cert_dir / NAME).read_text(), PATIENCE_S)
        renewed = leaf(ca)
    assert renewed.serial_number != old.serial_number
    assert renewed.public_key() == old.public_key()
    assert its.said.count("ordering") == 1


def test_a_restart_uses_the_existing_certificate(ca: Pebble) -> None:
    ca.start()
    with running(ca):
        first = leaf(ca)
    ca.stop()
    with running(ca) as again:
        assert leaf(ca) == first
    assert "ordering" not in again.said


def test_an_unreachable_ca_changes_nothing_and_is_retried_on_sighup(ca: Pebble) -> None:
    ca.start()
    ca.stop()
    old = keep(ca, days=(-20, 5))
    with relay(*ca.flags) as its:
        eventually(lambda: (ca.cert_dir / "acme-failures.json").exists(), PATIENCE_S)
        assert leaf(ca, root=old) == x509.load_pem_x509_certificate(old.encode())
        ca.start()
        its.process.send_signal(signal.SIGHUP)
        eventually(lambda: "BEGIN EC PRIVATE KEY" in (ca.cert_dir / NAME).read_text(), PATIENCE_S)
        assert leaf(ca)
        _, said = its.stop()
    assert re.search(
        r"no certificate from \S+: cannot reach https://\S+: Connection refused; "
        r"next attempt in 60 s",
        said,
    )
    assert re.search(
        r"Connection refused; .*, or on SIGHUP; the previous one stays, valid until", said
    )
    assert not (ca.cert_dir / "acme-failures.json").read_text().strip("{}")


def test_foreign_names_are_refused_without_a_query_to_the_ca(ca: Pebble) -> None:
    ca.start()
    with running(ca) as its:
        for stranger in ("other.example.com", f"a.{NAME}", "localhost", None):
            assert "unrecognized name" in alert(ca, stranger)
    with running(ca, "-acme-ip-certs") as with_addresses:
        assert "unrecognized name" in alert(ca, "other.example.com")
    assert "ordering" not in its.said + with_addresses.said


def test_simultaneous_clients_share_one_order(ca: Pebble) -> None:
    ca.start()
    with running(ca) as its, ThreadPoolExecutor(20) as pool:
        serials = set(pool.map(lambda _: leaf(ca).serial_number, range(20)))
    assert len(serials) == 1
    assert its.said.count("ordering") == 1


def test_the_wait_after_a_failed_order_survives_a_restart(ca: Pebble) -> None:
    ca.start(tlsPort=UNUSED_PORT, httpPort=UNUSED_PORT)
    with running(ca) as its:
        assert "internal error" in alert(ca)
        assert "internal error" in alert(ca)
        with socket.create_connection((ca.address, HTTP_PORT), timeout=PATIENCE_S) as client:
            client.sendall(b"GET /generate_204 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 204 "), "all else goes on"
    with running(ca) as again:
        assert "internal error" in alert(ca)
    assert its.said.count("ordering") == 1
    assert re.search(
        rf"{NAME}: no certificate from \S+: tls-alpn-01: .*; http-01: .*{UNUSED_PORT}.*; "
        r"next attempt in 60 s, or on SIGHUP\n",
        its.said,
    )
    assert "ordering" not in again.said


def test_files_kept_by_derper_are_used(ca: Pebble) -> None:
    ca.start()
    ca.cert_dir.mkdir()
    made = self_signed(NAME)
    key = load_pem_private_key(made.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    sec1 = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    chain = ssl.DER_cert_to_PEM_cert(made.der)
    (ca.cert_dir / NAME).write_bytes(sec1 + chain.encode())
    account = ec.generate_private_key(ec.SECP256R1())
    kept = account.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (ca.cert_dir / "acme_account+key").write_bytes(kept)
    with running(ca) as its:
        assert leaf(ca, root=chain).public_bytes(Encoding.DER) == made.der
    assert (ca.cert_dir / "acme_account+key").read_bytes() == kept
    assert "ordering" not in its.said


def test_the_log_distinguishes_an_untrusted_ca_from_an_unreachable_one(
    ca: Pebble, tmp_path: Path
) -> None:
    ca.start()
    other = tmp_path / "other.pem"
    other.write_text(ssl.DER_cert_to_PEM_cert(self_signed("other.test").der))
    with running(ca, "-acme-ca-file", str(other)) as its:
        assert "internal error" in alert(ca)
    assert "is not trusted; see -acme-ca-file" in its.said
