"""Certificates from files, changed while `fastderp-relay` runs."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import sys
from pathlib import Path

import pytest

from tests.kit.certificates import Certificate, self_signed
from tests.kit.command import RunningRelay, manual, relay, started
from tests.kit.relay import eventually

NAME = "relay.test"


def put(directory: Path, certificate: Certificate, name: str = NAME) -> Certificate:
    """Write the files of a certificate."""
    (directory / f"{name}.key").write_bytes(certificate.key_pem)
    (directory / f"{name}.crt").write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    return certificate


def flags(directory: Path, name: str = NAME) -> tuple[str, ...]:
    base = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")
    return (*base, "-c", str(directory / "relay.key"), *manual(directory, name))


def leaf(running: RunningRelay, name: str = NAME) -> bytes | None:
    """Return the certificate that a new client receives."""
    context = ssl._create_unverified_context()
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock,
        context.wrap_socket(sock, server_hostname=name) as client,
    ):
        return client.getpeercert(True)


def test_new_files_are_used_after_sighup(tmp_path: Path) -> None:
    old = put(tmp_path, self_signed(NAME))
    with relay(*flags(tmp_path)) as running:
        assert leaf(running) == old.der
        new = put(tmp_path, self_signed(NAME, days=(-1, 7)))
        running.process.send_signal(signal.SIGHUP)
        line = running.hears("reload: certificate: new: ")
        assert re.search(rf"certificate for {NAME}, valid until .* UTC$", line)
        assert leaf(running) == new.der
        running.process.send_signal(signal.SIGHUP)
        running.hears("reload: certificate: unchanged: ")
        assert running.stop()[0] == 0


def test_a_certificate_logs_its_expiry_and_a_daily_warning_when_that_is_soon(
    tmp_path: Path,
) -> None:
    put(tmp_path, self_signed(NAME, days=(-1, 90)))
    with relay(*flags(tmp_path)) as running:
        assert re.search(
            rf"certificate for {NAME}, valid until \d{{4}}-\d\d-\d\d \d\d:\d\d UTC$",
            running.said,
            re.M,
        )
        assert "that is in" not in running.said
    put(tmp_path, self_signed(NAME, days=(-70, 20)))
    days_fly = (
        "import fastderp.server.certificates.manual as m, fastderp.cli.relay as relay, sys;"
        "m.WARN_EVERY_S = 0.01; sys.exit(relay.main())"
    )
    with started([sys.executable, "-c", days_fly, *flags(tmp_path)]) as running:
        warning = running.find(
            f"(certificate for {NAME}, valid until .*, in 19 days; replace .*)\n"
        )
        assert running.process.stderr is not None
        assert warning in running.process.stderr.readline().decode()


@pytest.mark.parametrize("fault", ["junk", "other key", "other name", "expired", "absent"])
def test_files_that_cannot_be_used_leave_the_previous_certificate(
    tmp_path: Path, fault: str
) -> None:
    good = put(tmp_path, self_signed(NAME))
    with relay(*flags(tmp_path)) as running:
        if fault == "junk":
            (tmp_path / f"{NAME}.crt").write_text("junk")
        elif fault == "other key":
            (tmp_path / f"{NAME}.key").write_bytes(self_signed(NAME).key_pem)
        elif fault == "other name":
            put(tmp_path, self_signed("other.test"), NAME)
        elif fault == "expired":
            put(tmp_path, self_signed(NAME, days=(-9, -1)))
        else:
            (tmp_path / f"{NAME}.crt").unlink()
        running.process.send_signal(signal.SIGHUP)
        assert running.hears("reload: certificate: ").endswith(
            "; the previous one stays in force\n"
        )
        assert leaf(running) == good.der


def test_a_new_certificate_is_served_without_a_signal(tmp_path: Path) -> None:
    put(tmp_path, self_signed(NAME))
    with relay(*flags(tmp_path)) as running:
        (tmp_path / f"{NAME}.crt").write_text("a copy that is not complete")
        renewed = put(tmp_path, self_signed(NAME))
        eventually(lambda: leaf(running) == renewed.der, 30)
        _, said = running.stop()
    assert "files changed: certificate: new: certificate for" in said


def test_the_certificate_of_an_address_is_not_replaced_while_it_is_in_use(tmp_path: Path) -> None:
    with relay(*flags(tmp_path, "127.0.0.1")) as running:
        pinned = leaf(running, "127.0.0.1")
        for path in (*tmp_path.glob("*.crt"), *tmp_path.glob("127*.key")):
            path.unlink()
        running.process.send_signal(signal.SIGHUP)
        line = running.hears("reload: certificate: ")
        assert "127.0.0.1.crt does not exist; the previous one stays in force" in line
        assert leaf(running, "127.0.0.1") == pinned


def test_the_line_of_a_refused_client_has_the_server_name_it_requested(tmp_path: Path) -> None:
    put(tmp_path, self_signed(NAME))
    with relay(*flags(tmp_path)) as running:
        with pytest.raises(ssl.SSLError):
            leaf(running, "other.test")
        _, said = running.stop()
    assert "the client asked for 'other.test'; only 'relay.test' is served" in said


def test_a_certificate_that_has_expired_is_served(tmp_path: Path) -> None:
    old = put(tmp_path, self_signed(NAME, days=(-9, -1)))
    with relay(*flags(tmp_path)) as running:
        running.find(
            r"(certificate for relay\.test expired on [\d-]+: clients refuse it; replace .*)"
        )
        assert leaf(running) == old.der
