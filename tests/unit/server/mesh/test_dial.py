"""Dials of another relay of the region, and trust in it."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.errors import DialError
from fastderp.net.target import UrlTarget, certificate_pin
from fastderp.server.mesh.dial import dial
from fastderp.server.net.listen import UNSENT_BYTES
from fastderp.tls.context import ClientContext
from tests.kit.relay import Relay, Setup
from tests.unit.fake_tls_relay import make_identity, man_in_the_middle


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_a_member_known_by_its_pin_is_not_dialled_through_a_man_in_the_middle(
    tmp_path: Path, version: str
) -> None:
    (tmp_path / "genuine").mkdir()
    (tmp_path / "impostor").mkdir()
    genuine = make_identity(tmp_path / "genuine")
    async with man_in_the_middle(genuine, tmp_path / "impostor", version=version) as server:
        context = ClientContext(pin=certificate_pin(genuine.pin))
        with pytest.raises(DialError, match="not the pinned one"):
            await dial(UrlTarget(f"https://127.0.0.1:{server.port}/derp", "", ""), context)
        assert server.accepted.empty()


async def test_a_dialled_socket_has_the_options_of_an_accepted_one(
    start_relay: Callable[..., Relay],
) -> None:
    relay = start_relay(Setup("plain", "uvloop"))
    dialled = await dial(UrlTarget(f"http://127.0.0.1:{relay.port}/derp", "", ""), ClientContext())
    assert dialled.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert dialled.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
    dialled.close()
