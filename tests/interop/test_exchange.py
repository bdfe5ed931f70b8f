"""Real DERP traffic: checked packets both ways between two clients through a relay."""

from dataclasses import asdict

import pytest

from fastderp.wire.keys import NodePrivate, NodePublic

from .conftest import StartRelay
from .exchange import Result, Terms, exchange
from .gokit import GoClient, GoPrograms
from .ours import connected
from .relays import Relay, Transport

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

EVERY_WAY = pytest.mark.parametrize("transport", list(Transport))
EXCHANGE_TIMEOUT_S = 240.0


def terms(packets: int) -> Terms:
    """Return a run of packets of all sizes of the protocol, with 16 in flight."""
    return Terms(packets, max_size=65536, window=16, seed=packets)


async def exchange_between_go_clients(
    go: GoPrograms, relay: Relay, transport: Transport, terms: Terms
) -> tuple[Result, Result]:
    """Log two Go clients in, run an exchange between them and return both reports."""
    flags = relay.go_flags(transport)
    async with (
        await GoClient.start(go.derpkit, *flags) as a,
        await GoClient.start(go.derpkit, *flags) as b,
    ):
        assert_came_by(transport, a)
        b.begin("exchange", peer=a.key, answer=True, **asdict(terms))
        await b.next("armed")
        done = await a.do("exchange", EXCHANGE_TIMEOUT_S, peer=b.key, **asdict(terms))
        return Result(**done["result"]), Result(**(await b.finish())["result"])


async def exchange_between_go_and_ours(
    go: GoPrograms, relay: Relay, transport: Transport, terms: Terms
) -> tuple[Result, Result]:
    """Run an exchange between a Go client and a fastderp client; return both reports."""
    private = NodePrivate.generate()
    async with (
        await GoClient.start(go.derpkit, *relay.go_flags(transport)) as theirs,
        connected(relay, transport, private) as ours,
    ):
        assert_came_by(transport, theirs)
        theirs.begin("exchange", peer=private.public_key.text, answer=True, **asdict(terms))
        await theirs.next("armed")
        result = await exchange(ours, private.public_key, NodePublic.from_text(theirs.key), terms)
        return result, Result(**(await theirs.finish())["result"])


def assert_came_by(transport: Transport, client: GoClient) -> None:
    """Check that the client used the transport of the test."""
    versions = {
        Transport.PLAIN: "",
        Transport.TLS_1_2: "1.2",
        Transport.TLS_1_3: "1.3",
        Transport.FAST_START: "1.3",
    }
    assert client.ready["tls"] == versions[transport]
    assert client.ready["fast_start"] == (transport is Transport.FAST_START)


def assert_all_arrived(a: Result, b: Result, terms: Terms) -> None:
    """Check both reports against each other; contents and order were checked on arrival."""
    assert a.packets == b.packets == terms.packets
    assert (a.bytes_sent, b.bytes_sent) == (b.bytes_arrived, a.bytes_arrived)


@EVERY_WAY
async def test_two_go_clients_exchange_packets_through_derper(
    go_programs: GoPrograms, start_each_derper: StartRelay, transport: Transport
) -> None:
    """Check the reference: tailscale's programs among themselves."""
    run = terms(2_000)
    async with start_each_derper(tls=transport.is_tls) as relay:
        assert_all_arrived(
            *await exchange_between_go_clients(go_programs, relay, transport, run), run
        )


@EVERY_WAY
async def test_a_go_client_and_ours_exchange_packets_through_derper(
    go_programs: GoPrograms, start_each_derper: StartRelay, transport: Transport
) -> None:
    run = terms(20_000)
    async with start_each_derper(tls=transport.is_tls) as relay:
        assert_all_arrived(
            *await exchange_between_go_and_ours(go_programs, relay, transport, run), run
        )


@EVERY_WAY
async def test_two_go_clients_exchange_100000_packets(
    go_programs: GoPrograms, start_fastderp: StartRelay, transport: Transport
) -> None:
    run = terms(100_000)
    async with start_fastderp(tls=transport.is_tls) as relay:
        assert_all_arrived(
            *await exchange_between_go_clients(go_programs, relay, transport, run), run
        )


@EVERY_WAY
async def test_a_go_client_and_ours_exchange_100000_packets(
    go_programs: GoPrograms, start_fastderp: StartRelay, transport: Transport
) -> None:
    run = terms(100_000)
    async with start_fastderp(tls=transport.is_tls) as relay:
        assert_all_arrived(
            *await exchange_between_go_and_ours(go_programs, relay, transport, run), run
        )
