"""Answers to challenges of a CA (RFC 8555, RFC 8737)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from fastderp.server.certificates.acme.challenges import (
    HTTP_01,
    TLS_ALPN_01,
)
from fastderp.server.certificates.acme.settings import ALPN_PROTOCOL, HTTP_PREFIX
from fastderp.server.http.message import Request
from fastderp.server.server import Server
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from tests.unit.server.certificates.acme.ca import (
    NAME,
    PATIENCE_S,
    Ca,
    certificates,
    chosen,
    hello,
)


def request(path: str, host: str = NAME) -> Request:
    return Request("GET", path, path, "", "1.1", [("host", host)])


@pytest.mark.parametrize(
    "host", [NAME, f"{NAME}:80", NAME.upper(), "192.0.2.1", "[2001:db8::1]:80"]
)
async def test_only_our_tokens_are_answered(tmp_path: Path, ca: Ca, host: str) -> None:
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
async def test_challenges_for_other_names_are_refused(tmp_path: Path, ca: Ca, host: str) -> None:
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
