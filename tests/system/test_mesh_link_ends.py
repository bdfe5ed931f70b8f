"""The reason for which a link of the region ended is logged, whatever carries the link."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastderp.server.mesh.links import LinkState
from fastderp.tls.context import ClientContext
from tests.kit.certificates import self_signed, server_context
from tests.kit.mesh_member import SECRET, Member, member_of
from tests.kit.relay import Relay, eventually

BROKEN_RECORD = b"\x17\x03\x03\x00\x40" + bytes(64)


@pytest.fixture
def relay(start_relay: Callable[..., Relay]) -> Relay:
    return start_relay(mesh_key=SECRET, mesh_tls=ClientContext(verify=False))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda tls: tls.name)
def tls_member(request: pytest.FixtureRequest, relay: Relay, tmp_path: Path) -> Iterator[Member]:
    """Yield the only member, with a link to it over one version of TLS."""
    context = server_context(self_signed("127.0.0.1"), tmp_path)
    context.minimum_version = context.maximum_version = request.param
    with member_of(relay, context) as member:
        member.welcome()
        member.sock.sendall(member.present(bytes(range(32))))
        links = relay.server._region.mesh.links
        eventually(lambda: [link.state for link in links] == [LinkState.UP])
        yield member


def wait_ends(relay: Relay, reason: str) -> None:
    eventually(lambda: relay.metrics()["fastderp_session_closed_total"] == {reason: 1})


def logged_end(caplog: pytest.LogCaptureFixture) -> str:
    """Return the reason in the only line about a broken link."""
    line = r"mesh: no link to \S+ the link broke: (.*)"
    eventually(lambda: re.search(line, caplog.text))
    (reason,) = re.findall(line, caplog.text)
    return str(reason)


def test_a_record_that_breaks_tls_is_named(
    relay: Relay, tls_member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    socket.socket.sendall(tls_member.sock, BROKEN_RECORD)
    wait_ends(relay, "tls")
    assert re.search("(?i)record|decrypt|cipher operation", logged_end(caplog))


def test_a_reset_is_named(
    relay: Relay, tls_member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    tls_member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tls_member.sock.close()
    wait_ends(relay, "reset")
    assert logged_end(caplog) == "reset"


def test_an_end_in_order_is_named(
    relay: Relay, tls_member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    tls_member.sock.close()
    wait_ends(relay, "eof")
    assert logged_end(caplog) == "eof"
