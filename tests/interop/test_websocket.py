"""tailscale's WebSocket client, the one browsers run, through fastderp."""

from dataclasses import asdict

import pytest

from .conftest import StartRelay
from .exchange import Terms
from .gokit import GoClient, GoPrograms, plain_environment
from .relays import Relay, Transport

# Building the Go programs for the first time takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

EVERY_SIZE = Terms(packets=2000, max_size=65536, window=16, seed=7)


def websocket_environment(relay: Relay) -> dict[str, str]:
    """Return what makes a Go client open a WebSocket and trust the relay there."""
    trust = {"SSL_CERT_FILE": str(relay.root)} if relay.root else {}
    return plain_environment(TS_DEBUG_DERP_WS_CLIENT="1", **trust)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_a_go_client_over_websocket_and_one_without_exchange_packets(
    go_programs: GoPrograms, start_fastderp: StartRelay, tls: bool
) -> None:
    async with start_fastderp(tls=tls) as relay:
        flags = relay.go_flags(Transport.FAST_START if tls else Transport.PLAIN)
        async with (
            await GoClient.start(go_programs.derpkit, *flags, environment=websocket_environment(relay)) as a,
            await GoClient.start(go_programs.derpkit, *flags) as b,
        ):
            b.begin("exchange", peer=a.key, answer=True, **asdict(EVERY_SIZE))
            await b.next("armed")
            done = await a.do("exchange", 100, peer=b.key, **asdict(EVERY_SIZE))
            answered = await b.finish(100)
            assert done["result"]["packets"] == answered["result"]["packets"] == EVERY_SIZE.packets
            assert "\nderp_websocket_accepts 1\n" in relay.metrics_page()
