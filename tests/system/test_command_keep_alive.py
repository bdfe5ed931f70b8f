"""The times of keep-alives, with a clock that the test moves. PROTOCOL §4."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePublic
from tests.kit.command import relay
from tests.kit.compiler import has_c_compiler
from tests.kit.peer import KEEP_ALIVE, Peer
from tests.kit.shifted_clock import ShiftedClock
from tests.kit.websocket import WebSocketPeer

pytestmark = [
    pytest.mark.skipif(not has_c_compiler(), reason="no C compiler"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has the place"),
]


def n_keep_alives(peer: Peer) -> int:
    """Return how many were due: a ping wakes the session's worker, which looks at its timers."""
    return [*peer.sync(), *peer.sync()].count((KEEP_ALIVE, b""))


def test_idle_clients_behind_a_proxy_or_on_a_websocket_get_earlier_keep_alives(
    tmp_path: Path,
) -> None:
    """After 50 to 55 s instead of 60 to 65 s."""
    clock = ShiftedClock(tmp_path)
    flags = ("-a", ":0", "-http-port", "-1", "-stun=false", "-c", str(tmp_path / "key"))
    with relay(*flags, "-trusted-proxies", "127.0.0.1", env=clock.environment) as running:
        key = NodePublic.from_text(running.find(r"public key (\S+),"))
        direct = Peer.connect("::1", running.port, None, 10)
        direct.login(key)
        proxied = Peer.connect("127.0.0.1", running.port, None, 10)
        proxied.login(key, headers=["X-Forwarded-For: 203.0.113.7"])
        websocket = WebSocketPeer.connect("::1", running.port, None, 10)
        websocket.login(key)
        peers = (direct, proxied, websocket)
        for seconds, n_expected in ((44, [0, 0, 0]), (56, [0, 1, 1]), (66, [1, 0, 0])):
            clock.move_to(seconds)
            assert [n_keep_alives(peer) for peer in peers] == n_expected
