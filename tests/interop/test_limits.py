"""Health messages and 429 answers of fastderp-relay reach tailscale's client (PROTOCOL 2, 6.8)."""

import json
import sys
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePrivate

from .conftest import StartRelay, starter
from .gokit import GoClient, GoError, GoPrograms
from .relays import Transport

pytestmark = pytest.mark.timeout(600)

DUPLICATE = (
    "another connection uses the same node key, and packets go to the one that sent last; "
    "was a machine's state copied?"
)
SLOW = "this relay limits the rate of this client, and delays packets above the limit"
IMPATIENT = f"""\
#!{sys.executable}
import sys
from fastderp.cli.entry import relay
from fastderp.server.accept import duplicate_keys
duplicate_keys.SHARED_S = 0.1
sys.exit(relay())
"""
# Bytes per second, fewer than pings on a busy machine have; what exceeds the burst has to wait.
RATE = 20
BURST_BYTES = 65_568
PACKET_BYTES = 1_400
REFUSAL = "Too many connections or logins from this IP address"
# With a fast start the client reads the HTTP answer as a frame.
REFUSAL_FAST = "unexpectedly large frame"


@pytest.fixture
def start_impatient_fastderp(tmp_path_factory: pytest.TempPathFactory) -> StartRelay:
    """Return a starter of a relay that warns clients with one key after a moment, not 90 s."""
    program = tmp_path_factory.mktemp("impatient") / "fastderp-relay"
    program.write_text(IMPATIENT)
    program.chmod(0o755)
    return starter(program, tmp_path_factory)


@pytest.mark.parametrize("transport", Transport)
async def test_two_clients_with_one_key_get_health_messages_until_one_leaves(
    start_impatient_fastderp: StartRelay, go_programs: GoPrograms, transport: Transport
) -> None:
    key = ("-key", NodePrivate.generate().text)
    async with start_impatient_fastderp(tls=transport.is_tls) as relay:
        flags = relay.go_flags(transport)
        async with await GoClient.start(go_programs.derpkit, *flags, *key) as first:
            async with await GoClient.start(go_programs.derpkit, *flags, *key) as second:
                for client in (first, second):
                    assert (await client.next("health"))["problem"] == DUPLICATE
            assert (await first.next("health"))["problem"] == ""


@pytest.mark.parametrize("transport", Transport)
async def test_a_client_over_its_rate_gets_a_health_message_and_its_end(
    start_fastderp: StartRelay, go_programs: GoPrograms, tmp_path: Path, transport: Transport
) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"PerClientRateLimitBytesPerSec": RATE}))
    flags = ("-rate-config", str(limits))
    async with start_fastderp(*flags, tls=transport.is_tls) as relay:
        async with await GoClient.start(go_programs.derpkit, *relay.go_flags(transport)) as client:
            assert client.ready["bytes_per_second"] == RATE
            assert client.ready["bytes_burst"] == BURST_BYTES
            # The client keeps the announced rate with packets, but not with pings.
            for _ in range(BURST_BYTES // (PACKET_BYTES + 37)):
                await client.do("send", peer=client.key, data=bytes(PACKET_BYTES).hex())
                await client.next("packet")
            while not client.pending("health"):
                await client.do("ping")
            assert (await client.next("health"))["problem"] == SLOW
            assert (await client.next("health"))["problem"] == ""


@pytest.mark.parametrize("transport", Transport)
async def test_a_login_over_the_limit_of_its_address_is_reported_and_succeeds_later(
    start_fastderp: StartRelay, go_programs: GoPrograms, transport: Transport
) -> None:
    said = REFUSAL_FAST if transport is Transport.FAST_START else REFUSAL
    flags = ("-logins-per-address", "0.5", "-logins-per-address-burst", "1")
    async with start_fastderp(*flags, tls=transport.is_tls) as relay:
        derpkit, client_flags = go_programs.derpkit, relay.go_flags(transport)
        async with await GoClient.start(derpkit, *client_flags):
            with pytest.raises(GoError, match=said):
                await GoClient.start(derpkit, *client_flags)
            async with await GoClient.start(derpkit, *client_flags, "-reconnect") as later:
                assert said in (await later.next("broken"))["error"]
                assert (await later.do("ping"))["seconds"] < 10
