"""Trust of tailscale's clients in the relay's certificate."""

import pytest

from .conftest import StartRelay
from .gokit import GoClient, GoError, GoPrograms

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)


async def test_a_go_client_accepts_the_pinned_certificate(
    go_programs: GoPrograms, start_fastderp: StartRelay
) -> None:
    async with start_fastderp(tls=True) as relay:
        async with await GoClient.start(
            go_programs.derpkit, "-url", relay.url, "-pin", relay.pin
        ) as client:
            assert client.ready["fast_start"]


async def test_a_go_client_refuses_an_unknown_certificate(
    go_programs: GoPrograms, start_fastderp: StartRelay
) -> None:
    async with start_fastderp(tls=True) as relay, start_fastderp(tls=True) as another:
        with pytest.raises(GoError, match="certificate"):
            await GoClient.start(go_programs.derpkit, "-url", relay.url)
        with pytest.raises(GoError, match="cert"):
            await GoClient.start(go_programs.derpkit, "-url", relay.url, "-pin", another.pin)


async def test_a_go_client_that_trusts_any_certificate_starts_fast(
    go_programs: GoPrograms, start_fastderp: StartRelay
) -> None:
    async with start_fastderp(tls=True) as relay:
        async with await GoClient.start(
            go_programs.derpkit, "-url", relay.url, "-insecure"
        ) as client:
            assert client.ready["tls"] == "1.3"
            assert client.ready["fast_start"]
