"""Certificates from a CA: names, addresses, waiting handshakes, and failures of the CA."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fastderp.errors import IssuanceError
from fastderp.server.certificates.acme import provider as acme
from fastderp.server.certificates.acme.challenges import (
    DNS_01,
    HTTP_01,
    TLS_ALPN_01,
    Challenges,
)
from fastderp.server.certificates.acme.managed import ManagedCertificate
from fastderp.server.certificates.acme.order_thread import obtain_from_ca
from fastderp.server.certificates.acme.settings import LETS_ENCRYPT, VENDOR_HOSTNAME, AcmeSettings
from fastderp.server.certificates.acme.store import (
    Store,
    private_key,
)
from fastderp.server.server import Server
from fastderp.tls.context import ClientContext
from fastderp.tls.handshake import Handshake
from tests.unit.server.certificates.acme.ca import (
    META,
    NAME,
    PATIENCE_S,
    Ca,
    certificates,
    chain,
    chosen,
    hello,
    raising,
    ready,
    refused,
)


def n_failed_orders(ours: acme.AcmeCertificates) -> int:
    orders: Any = ours.metrics()["fastderp_acme_orders_total"]
    return int(orders["failed"])


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
    [
        "derp02.bar.tailscale.com",
        "www.tailscale.com",
        "derp.tailscale.com.example.com",
        "xderp.tailscale.com",
        "derp.tailscale.net",
        "derp/../x.tailscale.com",
        "derp/x.tailscale.com",
        "derp.tailscale.com..",
        "tailscale.com",
        "derp\x00.tailscale.com",
        NAME,
    ],
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


async def test_the_number_of_names_that_clients_request_is_bounded(tmp_path: Path, ca: Ca) -> None:
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME, ip_certs=True) as ours:
        for n in range(acme.NAMES_LIMIT - 1):
            await chosen(ours, f"derp{n}.tailscale.com")
        assert await refused(ours, "derp-more.tailscale.com") == "no_certificate"
        assert ready(ours, "derp1.tailscale.com")
        await chosen(ours, None)


async def test_with_a_dns_hook_a_missing_certificate_is_ordered_at_the_start(
    tmp_path: Path, ca: Ca
) -> None:
    async with certificates(tmp_path, ca, dns_hook=("hook",)) as ours:
        assert ours.summary == "certificates from ca.test: none yet, ordered now"
        await chosen(ours)
    async with certificates(tmp_path, ca, dns_hook=("hook",)) as ours:
        assert ready(ours)
    assert ca.asked == [NAME]


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_relay_that_ends_during_an_order_leaves_no_command_and_no_dns_record(
    tmp_path: Path, *, hangs: bool
) -> None:
    hook, calls, begun = tmp_path / "hook", tmp_path / "calls", threading.Event()
    hang = f'[ "$1" = cleanup ] || {{ sleep 600; echo went on >> {calls}; }}\n' if hangs else ""
    hook.write_text(f'#!/bin/sh\necho "$1" >> {calls}\n{hang}')
    hook.chmod(0o755)
    ended = threading.Event()

    class SlowCa(Ca):
        def obtain(
            self,
            settings: AcmeSettings,
            managed: ManagedCertificate,
            key: Any,
            challenges: Challenges,
        ) -> bytes:
            try:
                challenges.publish(DNS_01, managed.name, "token.thumbprint")
                begun.set()
                assert self.open.wait(PATIENCE_S)
                challenges.withdraw(managed.name, "token.thumbprint")
                raise IssuanceError("too late")
            finally:
                ended.set()

    async with certificates(tmp_path / "certs", SlowCa(), dns_hook=(str(hook),)):
        async with asyncio.timeout(PATIENCE_S):
            while not (calls.exists() if hangs else begun.is_set()):
                await asyncio.sleep(0.01)
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)
    assert calls.read_text() == "present\ncleanup\n"


async def test_a_relay_that_no_client_can_use_says_so_until_the_next_attempt(
    tmp_path: Path, ca: Ca
) -> None:
    async with certificates(tmp_path, ca) as ours:
        assert ours.faults() == [], "the first client has to come"
        ca.answer = lambda managed: raising(IssuanceError("no"))
        assert await refused(ours, NAME) == "no_certificate"
        assert ours.faults() == [f"no certificate for {NAME} was issued"]
        ca.answer = lambda managed: chain(managed.name, managed.key)
        ours.retry()
        await chosen(ours)
        assert ours.faults() == []


# Addresses


async def test_behind_nat_a_client_gets_the_certificate_of_the_public_address_of_its_family(
    tmp_path: Path, ca: Ca
) -> None:
    public = (ip_address("203.0.113.7"), ip_address("2001:db8::7"))
    async with certificates(
        tmp_path, ca, hostname="", ip_certs=True, public_ips=public[:1]
    ) as ours:
        unnamed = await chosen(ours, None, "10.0.0.5")
        assert await chosen(ours, "203.0.113.7", "10.0.0.5") is unnamed
        assert await refused(ours, "10.0.0.5", "10.0.0.5") == "server_name"
        await chosen(ours, None, "2001:db8::1")
    assert ca.asked == ["203.0.113.7", "2001:db8::1"]
    async with certificates(tmp_path, ca, hostname="", ip_certs=True, public_ips=public) as ours:
        await chosen(ours, None, "fd00::1")
    assert ca.asked[2:] == ["2001:db8::7"]


@pytest.mark.parametrize("local_ip", ["192.0.2.1", "2001:db8::1"])
async def test_each_address_has_its_own_certificate(tmp_path: Path, ca: Ca, local_ip: str) -> None:
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
async def test_lets_encrypt_gets_no_orders_for_addresses_that_it_never_signs(
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

    def keep(order: acme_order.Order, _challenges: Challenges) -> bytes:
        orders.append(order)
        return b""

    monkeypatch.setattr(acme_order, "obtain", keep)
    key = ec.generate_private_key(ec.SECP256R1())
    for name, http in (("2001:db8::1", True), (NAME, True), (NAME, False)):
        settings = AcmeSettings(LETS_ENCRYPT, tmp_path, NAME, ip_certs=True, http=http)
        obtain_from_ca(settings, ManagedCertificate(name, name != NAME, key), key, Challenges())
    assert [(order.methods, order.profile) for order in orders] == [
        ((HTTP_01,), "shortlived"), ((TLS_ALPN_01, HTTP_01), ""), ((TLS_ALPN_01,), ""),
    ]  # fmt: skip


# Waiting


async def test_simultaneous_handshakes_wait_for_one_order(tmp_path: Path, ca: Ca) -> None:
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


async def test_the_number_of_waiting_handshakes_is_bounded(tmp_path: Path, ca: Ca) -> None:
    ca.open.clear()
    async with certificates(tmp_path, ca) as ours:
        waiting = [ours.choose(hello(NAME), "") for _ in range(acme.WAITING_LIMIT)]
        assert await refused(ours, NAME) == "no_certificate"
        for future in waiting[:7]:
            assert isinstance(future, asyncio.Future)
            future.cancel()
        await asyncio.sleep(0)
        assert isinstance(ours.choose(hello(NAME), ""), asyncio.Future), (
            "a client that has left makes room"
        )


async def test_waiting_handshakes_fail_with_their_order_and_the_next_one_comes_later(
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


async def test_addresses_do_not_wait_for_names_that_clients_have_invented(
    tmp_path: Path, ca: Ca
) -> None:
    answer = ca.answer
    never = threading.Event()
    ca.answer = lambda managed: answer(managed) if managed.is_ip or never.wait(PATIENCE_S) else b""
    async with certificates(tmp_path, ca, hostname=VENDOR_HOSTNAME, ip_certs=True) as ours:
        assert not ready(ours, "derp7.tailscale.com")
        await chosen(ours, None)
        never.set()


async def test_an_abandoned_order_cancels_the_waiting_handshakes(tmp_path: Path, ca: Ca) -> None:
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


async def test_a_client_that_leaves_before_its_certificate_comes_is_no_internal_error(
    tmp_path: Path, ca: Ca
) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    ca.open.clear()
    async with certificates(tmp_path, ca) as ours, Server(login_timeout=0.2, workers=1) as relay:
        port = relay.listen("127.0.0.1", 0, tls=ours).port
        with pytest.raises(OSError):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=ssl._create_unverified_context(), server_hostname=NAME
            )
        ca.open.set()
        await chosen(ours)
    assert errors == []


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


# Errors of a CA


def other_key(managed: ManagedCertificate) -> bytes:
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
    answer: Callable[[ManagedCertificate], bytes],
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
            while not n_failed_orders(ours):
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
        closed = relay.metrics()["fastderp_closed_total"]
        assert isinstance(closed, Mapping) and "tls" not in "".join(closed)
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
        managed.certificate = managed.certificate._replace(not_after=int(time.time()))
        ca.answer = lambda managed: raising(IssuanceError("not today"))
        assert await refused(ours, NAME) == "no_certificate"
        assert await chosen(ours) is old


async def test_a_ca_with_certificates_that_are_due_at_once_is_used_after_a_pause(
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


async def test_a_disk_that_hangs_keeps_no_client_from_a_new_certificate(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, go_on = threading.Event(), threading.Event()
    save = Store.save

    def slow(*args: Any) -> None:
        saving.set()
        assert go_on.wait(10), "the disk hangs"
        save(*args)

    monkeypatch.setattr(Store, "save", slow)
    async with certificates(tmp_path, ca) as ours:
        first = asyncio.create_task(chosen(ours))
        while not saving.is_set():
            await asyncio.sleep(0.001)
        assert ready(ours), "a client that comes now"
        assert not first.done()
        go_on.set()
        assert await first
    assert ca.asked == [NAME]
    assert Store(tmp_path).load(NAME) is not None


async def test_a_full_disk_costs_only_the_restart(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with certificates(tmp_path, ca) as ours:
        monkeypatch.setattr(
            "fastderp.util.files.write_all_atomic",
            lambda *_: raising(OSError(28, "No space left on device")),
        )
        assert await chosen(ours)
        assert ready(ours)
    assert "No space left on device; the relay uses it until it ends" in caplog.text
