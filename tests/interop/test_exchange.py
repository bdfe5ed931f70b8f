"""Real DERP traffic: checked packets both ways between two clients through a relay."""

import pytest

from .conftest import StartRelay
from .gokit import Event, GoClient, GoPrograms
from .relays import Relay, Transport

# Building the Go programs for the first time takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

ALL_TRANSPORTS = pytest.mark.parametrize("transport", list(Transport))
WINDOW = 16
MAX_SIZE = 65536
EXCHANGE_TIMEOUT_S = 240.0


async def exchange_between_go_clients(go: GoPrograms, relay: Relay, transport: Transport, packets: int) -> list[Event]:
    """Log two Go clients in, run an exchange between them and return what each reports."""
    flags = relay.go_flags(transport)
    terms = {"packets": packets, "max_size": MAX_SIZE, "window": WINDOW, "seed": packets}
    async with await GoClient.start(go.derpkit, *flags) as a, await GoClient.start(go.derpkit, *flags) as b:
        assert_reached_by(transport, a)
        b.begin("exchange", peer=a.key, answer=True, **terms)
        await b.next("armed")
        done = await a.do("exchange", EXCHANGE_TIMEOUT_S, peer=b.key, **terms)
        return [done["result"], (await b.finish())["result"]]


def assert_reached_by(transport: Transport, client: GoClient) -> None:
    """Check that the client took the way the test is about."""
    versions = {Transport.PLAIN: "", Transport.TLS_1_2: "1.2", Transport.TLS_1_3: "1.3", Transport.FAST_START: "1.3"}
    assert client.ready["tls"] == versions[transport]
    assert client.ready["fast_start"] == (transport is Transport.FAST_START)


def assert_all_arrived(results: list[Event], packets: int) -> None:
    """Check both sides' reports against each other; contents were checked on arrival."""
    a, b = results
    assert a["packets"] == b["packets"] == packets
    assert a["bytes_sent"] == b["bytes_arrived"]
    assert b["bytes_sent"] == a["bytes_arrived"]


@ALL_TRANSPORTS
async def test_two_go_clients_exchange_packets_through_derper(
    go_programs: GoPrograms, start_derper: StartRelay, transport: Transport
) -> None:
    async with start_derper(tls=transport.is_tls) as relay:
        assert_all_arrived(await exchange_between_go_clients(go_programs, relay, transport, 2_000), 2_000)
