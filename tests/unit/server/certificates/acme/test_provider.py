"""Certificates from a CA: who may have one, who waits, what is kept, and what a CA's failures and mistakes lead to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastderp.errors import CertificateError, IssuanceError
from fastderp.server.certificates.acme import provider as acme
from fastderp.server.certificates.acme.challenges import (
    ALPN_PROTOCOL,
    HTTP_01,
    HTTP_PREFIX,
    TLS_ALPN_01,
    Challenges,
)
from fastderp.server.certificates.acme.provider import AcmeCertificates, Managed
from fastderp.server.certificates.acme.settings import LETS_ENCRYPT, VENDOR_HOSTNAME, AcmeSettings
from fastderp.server.certificates.acme.store import (
    ACCOUNT_KEY,
    RETRY_MAX_S,
    Failures,
    Store,
    private_key,
)
from fastderp.server.certificates.certificate import manual_certificate
from fastderp.server.http.message import Request
from fastderp.server.server import Server
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello, Handshake
from tests.kit.certificates import self_signed

NAME = "derp.example.com"
META = self_signed("derpkey").der
PATIENCE_S = 20.0

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def chain(name: str, key: Key, days: tuple[float, float] = (-1, 89)) -> bytes:
    """What a CA would answer, but for its signature."""
    now = datetime.datetime.now(datetime.UTC)
    alternative = (
        x509.IPAddress(acme.ip_literal(name)) if acme.ip_literal(name) else x509.DNSName(name)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days[0]))
        .not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class Ca:
    """A CA that does what the test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[Managed], bytes] = lambda managed: chain(managed.name, managed.key)
        self.open = threading.Event()
        self.open.set()

    def obtain(
        self, settings: AcmeSettings, managed: Managed, account_key: Any, challenges: Challenges
    ) -> bytes:
        self.asked.append(managed.name)
        assert self.open.wait(PATIENCE_S)
        return self.answer(managed)


@pytest.fixture
def ca() -> Ca:
    return Ca()


@contextlib.asynccontextmanager
async def certificates(directory: Path, ca: Ca, **settings: Any) -> AsyncIterator[AcmeCertificates]:
    """Certificates from that CA, started."""
    chosen = AcmeSettings(
        **{"directory_url": "https://ca.test/dir", "cert_dir": directory, "hostname": NAME}
        | settings
    )
    made = AcmeCertificates(chosen, META, obtain=ca.obtain)
    made.start()
    try:
        yield made
    finally:
        made.close()
        ca.open.set()


def hello(name: str | None, *alpn: str) -> ClientHello:
    return ClientHello(name, alpn)


async def chosen(
    certificates: AcmeCertificates, name: str | None = NAME, local_ip: str = "192.0.2.1"
) -> ServerContext:
    """Return the certificate a client gets, in the end."""
    choice = certificates.choose(hello(name), local_ip)
    if isinstance(choice, asyncio.Future):
        async with asyncio.timeout(PATIENCE_S):
            return await choice
    return choice


async def refused(
    certificates: AcmeCertificates, name: str | None, local_ip: str = "192.0.2.1"
) -> str:
    """Return why a client gets no certificate."""
    with pytest.raises(TlsError) as error:
        await chosen(certificates, name, local_ip)
    return error.value.cause


def ready(certificates: AcmeCertificates, name: str | None = NAME) -> bool:
    """Whether a client would not have to wait."""
    return isinstance(certificates.choose(hello(name), "192.0.2.1"), ServerContext)


# Names


@pytest.mark.parametrize("label", ["derp", "derp1", "derp1b", "derp-nyc", "DERP2"])
@pytest.mark.parametrize("dot", ["", "."])
async def test_with_the_default_name_tailscales_own_names_are_served(
    tmp_path: Path, ca: Ca, label: str, dot: str
) -> None:
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME) as ours:
        await chosen(ours, f"{label}.tailscale.com{dot}")
    assert ca.asked == [f"{label.lower()}.tailscale.com"]


@pytest.mark.parametrize(
    "name",
    ["derp02.bar.tailscale.com", "www.tailscale.com", "derp.tailscale.com.example.com", "xderp.tailscale.com", "derp.tailscale.net",
     "derp/../x.tailscale.com", "derp/x.tailscale.com", "derp.tailscale.com..", "tailscale.com", "derp\x00.tailscale.com", NAME],
)  # fmt: skip
async def test_with_the_default_name_others_are_not(tmp_path: Path, ca: Ca, name: str) -> None:
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME) as ours:
        assert await refused(ours, name) == "server_name"
    assert not ca.asked


async def test_only_the_name_itself_is_served(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca) as ours:
        for stranger in ("other.example.com", f"x.{NAME}", "example.com", "", None, "192.0.2.1"):
            assert await refused(ours, stranger) == "server_name"
        assert not ca.asked
        await chosen(ours, NAME.upper() + ".")
    assert ca.asked == [NAME]


async def test_strangers_cannot_think_of_names_without_end(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME, ip_certs=True) as ours:
        for n in range(acme.NAMES_LIMIT - 1):
            await chosen(ours, f"derp{n}.tailscale.com")
        assert await refused(ours, "derp-more.tailscale.com") == "no_certificate"
        assert ready(ours, "derp1.tailscale.com")
        await chosen(ours, None)


# Addresses


@pytest.mark.parametrize("local_ip", ["192.0.2.1", "2001:db8::1"])
async def test_each_address_has_a_certificate_of_its_own(
    tmp_path: Path, ca: Ca, local_ip: str
) -> None:
    async with certificates(tmp_path, ca, hostname="", ip_certs=True) as ours:
        without_name = await chosen(ours, None, local_ip)
        assert await chosen(ours, local_ip, local_ip) is without_name
        assert await chosen(ours, None, "192.0.2.7") is not without_name
    assert ca.asked == [local_ip, "192.0.2.7"]
    stem = local_ip.replace(":", ".")
    assert {f"{stem}.crt", f"{stem}.key", "192.0.2.7.crt", "192.0.2.7.key"} <= {
        path.name for path in tmp_path.iterdir()
    }


async def test_a_client_that_names_another_address_is_refused(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca, hostname="", ip_certs=True) as ours:
        assert await refused(ours, "192.0.2.2") == "server_name"
        assert await refused(ours, "2001:db8::1") == "server_name"
    assert not ca.asked


async def test_beside_addresses_a_name_is_served_where_there_is_one(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca, ip_certs=True) as both:
        assert await chosen(both, NAME) is not await chosen(both, None)
    async with certificates(tmp_path, ca, hostname="", ip_certs=True) as addresses:
        assert await refused(addresses, NAME) == "server_name"
        assert await refused(addresses, "example.com") == "server_name"


@pytest.mark.parametrize(
    "local_ip", ["127.0.0.1", "10.0.0.1", "100.64.0.1", "::1", "fd00::1", "fe80::1"]
)
async def test_lets_encrypt_is_not_asked_for_addresses_it_never_signs(
    tmp_path: Path, ca: Ca, local_ip: str
) -> None:
    async with certificates(
        tmp_path, ca, hostname="", ip_certs=True, directory_url=LETS_ENCRYPT
    ) as ours:
        assert await refused(ours, None, local_ip) == "no_certificate"
    assert not ca.asked


def test_addresses_are_ordered_by_http_01_in_the_short_lived_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastderp.server.certificates.acme import order as acme_order

    orders: list[acme_order.Order] = []
    monkeypatch.setattr(acme_order, "obtain", lambda order, challenges: orders.append(order) or b"")
    key = ec.generate_private_key(ec.SECP256R1())
    for name, http in (("2001:db8::1", True), (NAME, True), (NAME, False)):
        settings = AcmeSettings(LETS_ENCRYPT, tmp_path, NAME, ip_certs=True, http=http)
        acme._obtain(settings, Managed(name, name != NAME, key), key, Challenges())
    assert [(order.methods, order.profile) for order in orders] == [
        ((HTTP_01,), "shortlived"), ((TLS_ALPN_01, HTTP_01), ""), ((TLS_ALPN_01,), ""),
    ]  # fmt: skip


# Waiting


async def test_handshakes_that_come_together_wait_for_one_order(tmp_path: Path, ca: Ca) -> None:
    ca.open.clear()
    async with certificates(tmp_path, ca) as ours:
        waiting = [asyncio.create_task(chosen(ours)) for _ in range(20)]
        await asyncio.sleep(0)
        assert ours.metrics()["fastderp_acme_handshakes_waiting"] == 20
        ca.open.set()
        assert len(set(await asyncio.gather(*waiting))) == 1
        assert ours.metrics()["fastderp_acme_handshakes_waiting"] == 0
        assert ours.metrics()["fastderp_acme_orders_total"] == {"failed": 0, "issued": 1}
    assert ca.asked == [NAME]


async def test_no_more_than_a_bounded_number_waits(tmp_path: Path, ca: Ca) -> None:
    ca.open.clear()
    async with certificates(tmp_path, ca) as ours:
        waiting = [ours.choose(hello(NAME), "") for _ in range(acme.WAITING_LIMIT)]
        assert await refused(ours, NAME) == "no_certificate"
        for future in waiting[:7]:
            assert isinstance(future, asyncio.Future)
            future.cancel()
        await asyncio.sleep(0)
        assert isinstance(ours.choose(hello(NAME), ""), asyncio.Future), "who has left makes room"


async def test_who_waits_is_told_when_the_order_fails_and_the_ca_is_left_alone(
    tmp_path: Path, ca: Ca
) -> None:
    ca.answer = lambda _: raising(IssuanceError("not today"))
    async with certificates(tmp_path, ca) as ours:
        assert await refused(ours, NAME) == "no_certificate"
        assert await refused(ours, NAME) == "no_certificate"
        assert ours.metrics()["fastderp_acme_orders_total"] == {"failed": 1, "issued": 0}
    assert ca.asked == [NAME]
    async with certificates(tmp_path, ca) as after_a_restart:
        assert await refused(after_a_restart, NAME) == "no_certificate"
        assert ca.asked == [NAME]
        ca.answer = lambda managed: chain(managed.name, managed.key)
        after_a_restart.retry()
        async with asyncio.timeout(PATIENCE_S):
            while after_a_restart.metrics()["fastderp_acme_orders_total"] != {
                "failed": 0,
                "issued": 1,
            }:
                await asyncio.sleep(0.002)
        assert ready(after_a_restart)
    assert ca.asked == [NAME, NAME]


async def test_addresses_do_not_wait_for_names_that_strangers_have_thought_of(
    tmp_path: Path, ca: Ca
) -> None:
    answer = ca.answer
    never = threading.Event()
    ca.answer = lambda managed: answer(managed) if managed.is_ip or never.wait(PATIENCE_S) else b""
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME, ip_certs=True) as ours:
        assert not ready(ours, "derp7.tailscale.com")
        await chosen(ours, None)
        never.set()


async def test_an_order_that_is_abandoned_keeps_nobody(tmp_path: Path, ca: Ca) -> None:
    ca.open.clear()
    async with certificates(tmp_path, ca) as ours:
        future = ours.choose(hello(NAME), "")
        assert isinstance(future, asyncio.Future)
    with pytest.raises(asyncio.CancelledError):
        await future


async def test_a_handshake_waits_no_longer_than_a_login_may_take(tmp_path: Path, ca: Ca) -> None:
    ca.open.clear()
    trusting_anybody = ssl._create_unverified_context()
    async with certificates(tmp_path, ca) as ours, Server(login_timeout=0.2, workers=1) as relay:
        port = relay.listen("127.0.0.1", 0, tls=ours).port
        with pytest.raises(OSError):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting_anybody, server_hostname=NAME
            )
        assert relay.metrics()["fastderp_closed_total"] == {"tls_timeout": 1}
        assert ours.metrics()["fastderp_acme_handshakes_waiting"] == 0
        ca.open.set()
        await chosen(ours)
        relay.login_timeout = 10
        _, writer = await asyncio.open_connection(
            "127.0.0.1",
            relay.listen("127.0.0.1", 0, tls=ours).port,
            ssl=trusting_anybody,
            server_hostname=NAME,
        )
        writer.close()
    assert ca.asked == [NAME]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_has_waited_is_served(
    tmp_path: Path, ca: Ca, version: ssl.TLSVersion
) -> None:
    ca.open.clear()
    client = ssl._create_unverified_context()
    client.minimum_version = client.maximum_version = version
    async with certificates(tmp_path, ca) as ours, Server(workers=1) as relay:
        port = relay.listen("127.0.0.1", 0, tls=ours).port
        connecting = asyncio.create_task(
            asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=NAME)
        )
        async with asyncio.timeout(PATIENCE_S):
            while not ours.metrics()["fastderp_acme_handshakes_waiting"]:
                await asyncio.sleep(0.002)
        ca.open.set()
        reader, writer = await connecting
        writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_the_metacert_is_behind_the_chain(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca) as ours:
        relay, client = Handshake(await chosen(ours)), Handshake(ClientContext(verify=False), NAME)
    while not client.step() & relay.step():
        relay.feed(client.take_output())
        client.feed(relay.take_output())
    kept = Store(tmp_path).load(NAME)
    assert kept
    assert client.peer_chain == [*kept.chain, META]


# What a CA may get wrong


def raising(error: Exception) -> bytes:
    raise error


def other_key(managed: Managed) -> bytes:
    return chain(managed.name, ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda managed: raising(IssuanceError("the CA says no")), "the CA says no"),
        (lambda managed: b"", "the CA's answer is not a PEM certificate chain"),
        (lambda managed: b"<html>", "the CA's answer is not a PEM certificate chain"),
        (
            lambda managed: chain("other.example.com", managed.key),
            "is for other.example.com, not for",
        ),
        (lambda managed: chain(managed.name, managed.key, (-9, -1)), "expired on"),
        (lambda managed: chain(managed.name, managed.key, (1, 9)), "is not valid before"),
        (other_key, "does not belong to the certificate"),
        (lambda managed: raising(RuntimeError("a bug")), "a bug"),
    ],
    ids=["refusal", "empty", "html", "other name", "expired", "future", "other key", "bug"],
)
async def test_a_bad_certificate_never_replaces_a_good_one(
    tmp_path: Path,
    ca: Ca,
    answer: Callable[[Managed], bytes],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ca.answer = lambda managed: chain(managed.name, managed.key, (-20, 5))
    async with certificates(tmp_path, ca) as ours:
        good = await chosen(ours)
        kept = (tmp_path / NAME).read_bytes()
        ca.answer = answer
        ours.retry()
        async with asyncio.timeout(PATIENCE_S):
            while not ours.metrics()["fastderp_acme_orders_total"]["failed"]:  # type: ignore[index,call-overload]
                await asyncio.sleep(0.002)
        assert await chosen(ours) is good
        assert (tmp_path / NAME).read_bytes() == kept
    assert reason in caplog.text
    assert "stays" in caplog.text


async def test_no_login_fails_while_certificates_are_renewed(tmp_path: Path, ca: Ca) -> None:
    ca.answer = lambda managed: chain(managed.name, managed.key, (-20, 5))
    client = ssl._create_unverified_context()

    async def probe(port: int) -> bytes:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=NAME
        )
        writer.write(b"GET /derp/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line

    async with certificates(tmp_path, ca) as ours, Server(workers=1) as relay:
        port = relay.listen("127.0.0.1", 0, tls=ours).port
        await probe(port)
        for _ in range(10):
            ours.retry()
            assert set(await asyncio.gather(*(probe(port) for _ in range(8)))) == {
                b"HTTP/1.1 200 OK\r\n"
            }
        assert "tls" not in "".join(relay.metrics()["fastderp_closed_total"])  # type: ignore[arg-type]
    assert len(ca.asked) > 5


async def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(
    tmp_path: Path, ca: Ca
) -> None:
    store = Store(tmp_path)
    key = private_key(None)
    for days, due in (((-61, 29), True), ((-59, 31), False)):
        store.save(NAME, chain(NAME, key, days), key)
        async with certificates(tmp_path, ca) as ours:
            before = await chosen(ours)
            async with asyncio.timeout(PATIENCE_S):
                while due and await chosen(ours) is before:
                    await asyncio.sleep(0.002)
        assert ca.asked == [NAME]


async def test_an_expired_certificate_is_shown_when_there_is_no_other(
    tmp_path: Path, ca: Ca
) -> None:
    async with certificates(tmp_path, ca) as ours:
        old = await chosen(ours)
        managed = ours._managed[NAME]
        assert managed.certificate
        managed.certificate = replace(
            managed.certificate, not_after=datetime.datetime.now(datetime.UTC)
        )
        ca.answer = lambda managed: raising(IssuanceError("not today"))
        assert await refused(ours, NAME) == "no_certificate"
        assert await chosen(ours) is old


async def test_a_ca_whose_certificates_are_born_old_is_not_asked_without_end(
    tmp_path: Path, ca: Ca
) -> None:
    ca.answer = lambda managed: chain(managed.name, managed.key, (-20, 5))
    async with certificates(tmp_path, ca) as ours:
        await chosen(ours)
        ours._scan()
        await chosen(ours)
        ours.retry()
        async with asyncio.timeout(PATIENCE_S):
            while ours.metrics()["fastderp_acme_orders_total"] != {"failed": 0, "issued": 2}:
                await asyncio.sleep(0.002)
    assert ca.asked == [NAME, NAME], "the second because it was asked for"


async def test_a_full_disk_costs_only_the_restart(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with certificates(tmp_path, ca) as ours:
        monkeypatch.setattr(
            "fastderp.server.certificates.acme.store.write_atomically",
            lambda *_: raising(OSError(28, "No space left on device")),
        )
        assert await chosen(ours)
        assert ready(ours)
    assert "No space left on device; it is used until the relay ends" in caplog.text


# What is kept


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
    assert "another one is ordered when it is needed" in caplog.text


async def test_a_new_process_goes_on_with_what_is_on_disk(tmp_path: Path, ca: Ca) -> None:
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


def test_an_rsa_key_of_before_is_kept(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    Store(tmp_path).save(NAME, chain(NAME, key), key)
    certificate = Store(tmp_path).load(NAME)
    assert certificate
    again = private_key(certificate)
    assert isinstance(again, rsa.RSAPrivateKey)
    assert again.private_numbers() == key.private_numbers()


def test_the_accounts_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "certs"
    first = Store(directory).account_key(ACCOUNT_KEY)
    assert Store(directory).account_key(ACCOUNT_KEY).private_numbers() == first.private_numbers()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / ACCOUNT_KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"junk", rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())], ids=["empty", "junk", "rsa"])  # fmt: skip
def test_an_accounts_key_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / ACCOUNT_KEY).write_bytes(content)
    with pytest.raises(CertificateError, match=r"acme_account\+key"):
        Store(tmp_path).account_key(ACCOUNT_KEY)
    assert (tmp_path / ACCOUNT_KEY).read_bytes() == content


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match="cannot keep certificates in"):
        Store(tmp_path / "file" / "certs")


def test_waits_double_up_to_half_an_hour_and_outlive_a_restart(tmp_path: Path) -> None:
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


def test_a_ca_that_counts_requests_is_left_alone_the_longest(tmp_path: Path) -> None:
    assert Failures(tmp_path / "f").add(NAME, rate_limited=True) == RETRY_MAX_S


def test_a_clock_that_was_changed_makes_nobody_wait(tmp_path: Path) -> None:
    now = [1e9]
    failures = Failures(tmp_path / "f", clock=lambda: now[0])
    failures.add(NAME)
    now[0] -= 1e6
    assert failures.wait_s(NAME) == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a":1}', '{"a":[1]}', '{"a":["x","y"]}', "null", "\xff"]
)
def test_a_damaged_record_of_failures_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "f").write_text(content, "latin-1")
    assert Failures(tmp_path / "f").wait_s("a") == 0


# Challenges


def request(path: str, host: str = NAME) -> Request:
    return Request("GET", path, path, "", "1.1", [("host", host)])


@pytest.mark.parametrize(
    "host", [NAME, f"{NAME}:80", NAME.upper(), "192.0.2.1", "[2001:db8::1]:80"]
)
async def test_a_token_that_is_ours_is_answered_and_no_other(
    tmp_path: Path, ca: Ca, host: str
) -> None:
    async with certificates(tmp_path, ca, ip_certs=True) as ours:
        ours._challenges.publish(HTTP_01, NAME, "token.thumb")
        known = ours.respond(request(HTTP_PREFIX + "token", host))
        assert (known.status, known.body, known.content_type) == (
            200,
            b"token.thumb",
            "text/plain; charset=utf-8",
        )
        unknown = ours.respond(request(HTTP_PREFIX + "other", host))
        assert (unknown.status, unknown.content_type) == (404, "text/plain; charset=utf-8")
        ours._challenges.withdraw(NAME, "token.thumb")
        assert ours.respond(request(HTTP_PREFIX + "token", host)).status == 404


@pytest.mark.parametrize("host", ["other.example.com", "", "192.0.2.1"])
async def test_questions_about_other_names_are_refused(tmp_path: Path, ca: Ca, host: str) -> None:
    async with certificates(tmp_path, ca) as ours:
        ours._challenges.publish(HTTP_01, NAME, "token.thumb")
        assert ours.respond(request(HTTP_PREFIX + "token", host)).status == 403


async def test_the_validating_certificate_is_for_the_validating_protocol_alone(
    tmp_path: Path, ca: Ca
) -> None:
    async with certificates(tmp_path, ca) as ours:
        with pytest.raises(TlsError):
            ours.choose(hello(NAME, ALPN_PROTOCOL), "")
        ours._challenges.publish(TLS_ALPN_01, NAME, "token.thumb")
        validating = ours.choose(hello(NAME, ALPN_PROTOCOL), "")
        assert isinstance(validating, ServerContext)
        assert not ca.asked
        assert await chosen(ours) is not validating
        assert ours.choose(hello(NAME, "http/1.1", ALPN_PROTOCOL), "") is not validating
        with pytest.raises(TlsError):
            ours.choose(hello("other.example.com", ALPN_PROTOCOL), "")


async def test_nothing_is_served_behind_a_validating_handshake(tmp_path: Path, ca: Ca) -> None:
    client = ssl._create_unverified_context()
    client.set_alpn_protocols([ALPN_PROTOCOL])
    async with certificates(tmp_path, ca) as ours, Server(workers=1) as relay:
        ours._challenges.publish(TLS_ALPN_01, NAME, "token.thumb")
        port = relay.listen("127.0.0.1", 0, tls=ours).port
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=NAME
        )
        der = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(OSError):
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()
    [identifier] = [e for e in x509.load_der_x509_certificate(der).extensions if e.critical]
    assert identifier.oid.dotted_string == "1.3.6.1.5.5.7.1.31"
    assert identifier.value.public_bytes()[:2] == b"\x04\x20"
