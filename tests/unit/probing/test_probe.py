"""The steps of a probe in cases that a real relay does not make."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.net.lookup import Address
from fastderp.net.socket_stream import SocketStream, open_socket_stream
from fastderp.net.target import UrlTarget
from fastderp.probing import probe
from fastderp.probing.probe import Probe, ProbeOptions
from fastderp.probing.step import Outcome, Step
from fastderp.server.certificates.metacert import meta_cert
from fastderp.wire.keys import NodePrivate
from tests.unit.fake_relay import FakeServer, fake_server
from tests.unit.fake_tls_relay import make_identity, tls_server


async def probed(url: str, cert_name: str = "", cafile: Path | None = None) -> dict[str, Step]:
    """Probe without STUN; return the last step of each name."""
    steps: list[Step] = []
    options = ProbeOptions(cert_name=cert_name, cafile=cafile, stun_port=0, timeout_s=2.0)
    await Probe(UrlTarget(url, cert_name, ""), options, steps.append).run()
    return {step.name: step for step in steps}


async def probed_while_it_logs_in(server: FakeServer, url: str, pin: str) -> dict[str, Step]:
    async def admit() -> None:
        while True:
            head, relay = await server.accepted.get()
            if b"GET /derp " in head:
                await relay.accept_login()

    admitting = asyncio.create_task(admit())
    try:
        return await probed(url, pin)
    finally:
        admitting.cancel()


@pytest.mark.parametrize("announced", ["own", "other", "none"])
async def test_the_relays_key_is_the_one_that_its_certificate_announces(
    announced: str, tmp_path: Path
) -> None:
    identity = make_identity(tmp_path)
    async with tls_server(identity) as server:
        key = server.key if announced == "own" else NodePrivate.generate()
        if announced != "none":
            extra = ssl.DER_cert_to_PEM_cert(meta_cert(key.public_key.hex))
            chain = tmp_path / "chain.pem"
            chain.write_text(identity.certificate.read_text() + extra)
            assert server.tls is not None
            server.tls.load_cert_chain(chain, identity.key)
        url = f"https://127.0.0.1:{server.port}"
        login = (await probed_while_it_logs_in(server, url, identity.pin))["login"]
    assert login.details["server_key"] == str(server.key.public_key)
    if announced == "other":
        assert login.outcome is Outcome.FAILED
        assert f"its certificate announces {key.public_key}" in login.text
    else:
        assert login.outcome is Outcome.OK


@pytest.mark.parametrize(
    ("cert_name", "outcome"), [("derp.example", Outcome.OK), ("other.example", Outcome.FAILED)]
)
async def test_the_certificate_may_be_for_another_name(
    cert_name: str, outcome: Outcome, tmp_path: Path
) -> None:
    identity = make_identity(tmp_path, days=9)
    async with tls_server(identity) as server:
        url = f"https://127.0.0.1:{server.port}"
        steps = await probed(url, cert_name, identity.certificate)
    assert steps["tls"].outcome is outcome
    assert steps["cert"].text.startswith(
        "derp.example, 127.0.0.1; expires in 9.0 days; self-signed"
    )


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_the_version_of_tls_is_told(version: str, tmp_path: Path) -> None:
    identity = make_identity(tmp_path)
    async with tls_server(identity, version=version) as server:
        tls = (await probed(f"https://127.0.0.1:{server.port}", identity.pin))["tls"]
    assert tls.details["version"] == version.replace("_", ".")
    assert tls.text == f"{tls.details['version']}, {tls.details['cipher']}"
    assert tls.details["cipher"]


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function that gives the name two addresses, and IPv6 an error."""

    def have(port: int, number: int) -> None:
        async def look_up(*_: object) -> list[Address]:
            here: Address = (socket.AF_INET, ("127.0.0.1", port))
            return [(socket.AF_INET6, ("2001:db8::1", port, 0, 0)), here]

        async def open_stream(host: str, port: int, family: socket.AddressFamily) -> SocketStream:
            if family == socket.AF_INET6:
                raise OSError(number, "")
            return await open_socket_stream(host, port, family)

        monkeypatch.setattr(probe, "look_up", look_up)
        monkeypatch.setattr(probe, "open_socket_stream", open_stream)

    return have


@pytest.mark.parametrize(
    ("number", "outcome", "text"),
    [
        (errno.ENETUNREACH, Outcome.NOTE, "Network is unreachable from this machine"),
        (errno.ECONNREFUSED, Outcome.FAILED, "Connection refused"),
    ],
)
async def test_each_address_is_tried_and_the_first_that_answers_is_used(
    number: int,
    outcome: Outcome,
    text: str,
    two_addresses: Callable[[int, int], None],
) -> None:
    async with fake_server() as server:
        port = server.port
        two_addresses(port, number)
        steps: list[Step] = []
        options = ProbeOptions(stun_port=0, timeout_s=2.0)
        target = UrlTarget(f"http://both.test:{port}", "", "")
        await Probe(target, options, steps.append).run()
    name, ipv6, ipv4, *_ = steps
    assert name.text == "2001:db8::1, 127.0.0.1"
    assert (ipv6.name, ipv6.outcome) == ("tcp", outcome)
    assert ipv6.text == f"[2001:db8::1]:{port}: {text}"
    assert (ipv4.name, ipv4.outcome) == ("tcp", Outcome.OK)
    assert next(step for step in steps if step.name == "upgrade").outcome is Outcome.OK


async def test_a_reset_is_named_without_its_number() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        steps = await probed(f"http://127.0.0.1:{port}")
    assert steps["upgrade"].text == "reading failed: Connection reset by peer"


async def test_an_impossible_host_name_is_explained() -> None:
    steps = await probed("http://a..b")
    assert steps["name"].text.startswith("a..b is no host name: each of its parts has 1 to 63 ")
