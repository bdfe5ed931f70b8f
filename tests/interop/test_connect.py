"""derper and fastderp-relay refuse the same CONNECT requests with equal texts. PROTOCOL §9.8."""

import asyncio
import ssl

import pytest

from .conftest import StartRelay
from .relays import Relay

pytestmark = pytest.mark.timeout(600)

# no permitted target: a test must not connect to control servers
TARGETS = [
    *(
        "example.com:443",
        "tailscale.com:443",
        "derp1.tailscale.com:443",
        "my-derp.tailscale.com:80",
        "control.tailscale.com:22",
    ),
    *(
        "control.tailscale.com:8443",
        "control.tailscale.com.example.com:443",
        "eviltailscale.com:443",
        "127.0.0.1:443",
    ),
    *("[::1]:443", "CONTROL.TAILSCALE.COM:443", "control.tailscale.com.:443"),
]


async def answer(relay: Relay, target: str) -> tuple[str, bytes]:
    """Send a CONNECT for a target; return the status and the body of the answer."""
    context = ssl._create_unverified_context() if relay.root else None
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
    writer.write(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode()
    )
    async with asyncio.timeout(20):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.split()[1].decode(), body


@pytest.mark.parametrize("flags", [(), ("-ace",)], ids=["off", "on"])
async def test_the_same_targets_are_refused(
    start_each_derper: StartRelay, start_fastderp: StartRelay, flags: tuple[str, ...]
) -> None:
    async with (
        start_each_derper(*flags, tls=True) as theirs,
        start_fastderp(*flags, tls=True) as ours,
    ):
        expected = {target: await answer(theirs, target) for target in TARGETS}
        assert {target: await answer(ours, target) for target in TARGETS} == expected
        words = b"Invalid CONNECT target\n" if flags else b"CONNECT not enabled\n"
        assert expected["example.com:443"] == ("403", words)
