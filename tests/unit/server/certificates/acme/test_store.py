"""The files of ACME in -certdir: certificates, account keys and failures (PROTOCOL 10)."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastderp.errors import CertificateError
from fastderp.server.certificates.acme.failures import RETRY_MAX_S, Failures
from fastderp.server.certificates.acme.store import (
    ACCOUNT_KEY,
    Store,
    private_key,
)
from fastderp.server.certificates.manual import manual_certificate
from tests.unit.server.certificates.acme.ca import (
    NAME,
    Ca,
    certificates,
    chain,
    chosen,
    ready,
)


@pytest.mark.parametrize(
    "content", ["", "junk", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"]
)
async def test_a_damaged_file_is_replaced(
    tmp_path: Path, ca: Ca, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_text(content)
    async with certificates(tmp_path, ca) as ours:
        await chosen(ours)
    assert Store(tmp_path).load(NAME)
    assert "the next client triggers a new order" in caplog.text


async def test_a_new_process_uses_the_files_on_disk(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca, ip_certs=True) as ours:
        await chosen(ours)
        await chosen(ours, None)
    async with certificates(tmp_path, ca, ip_certs=True) as again:
        assert ready(again)
        assert ready(again, None)
    assert ca.asked == [NAME, "192.0.2.1"]


async def test_a_self_signed_certificate_of_manual_mode_is_replaced(tmp_path: Path, ca: Ca) -> None:
    own = manual_certificate(tmp_path, "192.0.2.1")
    async with certificates(tmp_path, ca, hostname="", ip_certs=True) as ours:
        await chosen(ours, None)
    assert ca.asked == ["192.0.2.1"]
    kept = Store(tmp_path).load("192.0.2.1")
    assert kept
    assert kept.chain != own.chain


def test_a_kept_certificate_that_is_not_valid_yet_is_used_and_an_expired_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Check a clock that is late at the start and is set afterwards."""
    store, key = Store(tmp_path), private_key(None)
    store.save(NAME, chain(NAME, key, (1, 90)), key)
    assert store.load(NAME)
    assert "is not valid before" in caplog.text
    store.save(NAME, chain(NAME, key, (-90, -1)), key)
    assert store.load(NAME) is None
    assert "the next client triggers a new order" in caplog.text


def test_a_previous_rsa_key_is_kept(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    Store(tmp_path).save(NAME, chain(NAME, key), key)
    certificate = Store(tmp_path).load(NAME)
    assert certificate
    again = private_key(certificate)
    assert isinstance(again, rsa.RSAPrivateKey)
    assert again.private_numbers() == key.private_numbers()


def test_the_accounts_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "certs"
    first = Store(directory).account_key(ACCOUNT_KEY)
    assert Store(directory).account_key(ACCOUNT_KEY).private_numbers() == first.private_numbers()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / ACCOUNT_KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        rsa.generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        ),
    ],
    ids=["empty", "junk", "rsa"],
)
def test_an_unusable_account_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ACCOUNT_KEY).write_bytes(content)
    with pytest.raises(CertificateError, match=r"acme_account\+key"):
        Store(tmp_path).account_key(ACCOUNT_KEY)
    assert (tmp_path / ACCOUNT_KEY).read_bytes() == content


def test_a_directory_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match="cannot keep certificates in"):
        Store(tmp_path / "file" / "certs")


def test_waits_double_up_to_half_an_hour_and_survive_a_restart(tmp_path: Path) -> None:
    now = [1e9]
    failures = Failures(tmp_path / "f", clock=lambda: now[0])
    assert failures.wait_s(NAME) == 0
    assert [failures.add(NAME) for _ in range(7)] == [60, 120, 240, 480, 960, 1800, 1800]
    again = Failures(tmp_path / "f", clock=lambda: now[0])
    assert again.wait_s(NAME) == 1800
    assert again.wait_s("other") == 0
    now[0] += 1801
    assert again.wait_s(NAME) == 0
    again.clear(NAME)
    assert again.add(NAME) == 60
    now[0] += 4000
    Failures(tmp_path / "f", clock=lambda: now[0]).add("other")
    assert NAME not in (tmp_path / "f").read_text(), "what is long ago is forgotten"


def test_a_ca_that_limits_requests_is_retried_after_the_longest_wait(tmp_path: Path) -> None:
    assert Failures(tmp_path / "f").add(NAME, rate_limited=True) == RETRY_MAX_S


def test_a_changed_clock_ends_every_wait(tmp_path: Path) -> None:
    now = [1e9]
    failures = Failures(tmp_path / "f", clock=lambda: now[0])
    failures.add(NAME)
    now[0] -= 1e6
    assert failures.wait_s(NAME) == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a":1}', '{"a":[1]}', '{"a":["x","y"]}', "null", "\xff"]
)
def test_a_damaged_record_of_failures_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "f").write_text(content, "latin-1")
    assert Failures(tmp_path / "f").wait_s("a") == 0
