"""The certificate of -certmode manual while the relay runs: warnings, reloads, its node."""

import asyncio
import re
import ssl
from pathlib import Path

import pytest

from fastderp.errors import CertificateError
from fastderp.server.certificates import manual
from fastderp.server.certificates.manual import ManualCertificate
from fastderp.server.certificates.metacert import meta_cert
from fastderp.tls.context import ServerContext
from tests.kit.certificates import self_signed

NAME = "relay.test"
META = meta_cert("ab" * 32)
HOUR_S = 3600
DAY_S = 24 * HOUR_S


def put(directory: Path, name: str = NAME, days: tuple[int, int] = (-1, 89)) -> None:
    """Write the files of a new self-signed certificate."""
    made = self_signed(name, days=days)
    (directory / f"{name}.crt").write_text(ssl.DER_cert_to_PEM_cert(made.der))
    (directory / f"{name}.key").write_bytes(made.key_pem)


@pytest.mark.parametrize(
    ("days", "warning"),
    [
        ((-40, -2), r"certificate for relay\.test expired on [\d-]+: clients refuse it; replace"),
        ((2, 40), r"certificate for relay\.test is not valid before .*; check the clock"),
        (
            (-80, 29),
            r"UTC, in 28 days; replace .*relay\.test\.crt and relay\.test\.key and send SIG",
        ),
        ((-80, 31), ""),
        ((-5, 2), r"UTC, in 1 day;"),
        ((-3, 4), ""),
        ((-300, 60), ""),
    ],
    ids=["expired", "future", "29 of 109", "31 of 111", "2 of 7", "4 of 7", "60 of 360"],
)
async def test_a_certificate_outside_its_validity_is_served_with_a_daily_warning(
    tmp_path: Path,
    days: tuple[int, int],
    warning: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manual, "WARN_EVERY_S", 0.001)
    put(tmp_path, days=days)
    ours = ManualCertificate(tmp_path, NAME)
    assert isinstance(ours.context(META), ServerContext)
    ours.start(port=443, stun_port=3478)
    for _ in range(3):
        await asyncio.sleep(0.002)
    ours.close()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    if not warning:
        assert not warnings
        return
    assert len(warnings) >= 2
    caplog.clear()

    assert all(re.search(warning, record.getMessage()) for record in warnings)


async def test_an_expired_self_signed_certificate_names_the_way_to_replace_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "10.0.0.1", (-40, -2))
    ours = ManualCertificate(tmp_path, "10.0.0.1")
    ours.start(port=443, stun_port=3478)
    ours.close()
    assert "10.0.0.1.key and restart to create new ones, and put the new CertName" in caplog.text


async def test_a_reload_with_another_self_signed_certificate_prints_the_new_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ours = ManualCertificate(tmp_path, "127.0.0.1")
    ours.start(port=8443, stun_port=None)
    old = ours.certificate.pin
    assert old in caplog.text
    caplog.clear()
    published: list[ServerContext] = []
    text = await ours.reload(published.append, META)
    assert text.startswith("unchanged: certificate for 127.0.0.1")
    assert len(published) == 1
    assert "CertName" not in caplog.text, "the same certificate"
    put(tmp_path, "127.0.0.1")
    text = await ours.reload(published.append, META)
    assert text.startswith("new: certificate for 127.0.0.1, valid")
    ours.close()
    assert ours.certificate.pin != old
    node = ours.certificate.derp_node(port=8443, stun_port=None)
    assert [record.getMessage().strip() for record in caplog.records].count(node) == 1


def test_a_warning_comes_a_third_of_the_lifetime_ahead_and_at_most_a_month(tmp_path: Path) -> None:
    put(tmp_path, days=(0, 90))
    ours = ManualCertificate(tmp_path, NAME)
    end = ours.certificate.not_after
    assert not ours._warning(end - 31 * DAY_S)
    assert "29 days" in ours._warning(end - 29 * DAY_S - HOUR_S)
    assert "5 hours" in ours._warning(end - 5 * HOUR_S - 60)


async def test_an_expired_certificate_replaces_only_an_expired_one(
    tmp_path: Path,
) -> None:
    published: list[ServerContext] = []
    put(tmp_path, days=(-9, 9))
    ours = ManualCertificate(tmp_path, NAME)
    put(tmp_path, days=(-9, -1))
    with pytest.raises(CertificateError, match="expired"):
        await ours.reload(published.append, META)
    assert not published
    ours = ManualCertificate(tmp_path, NAME)
    put(tmp_path, days=(-9, -2))
    await ours.reload(published.append, META)
    ours.close()
    assert len(published) == 1
