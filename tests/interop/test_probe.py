"""`fastderp-relay probe` at the real derper."""

import asyncio
import json
from typing import Any

import pytest

from tests.kit.command import COMMAND

from .conftest import StartRelay
from .relays import Relay

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)


async def probed(relay: Relay, scheme: str, *flags: str) -> tuple[int | None, dict[str, Any]]:
    url = f"{scheme}://127.0.0.1:{relay.port}"
    process = await asyncio.create_subprocess_exec(
        COMMAND, "probe", "-json", "-stun=false", *flags, url, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    found = json.loads(said)
    return process.returncode, {step["step"]: step for step in found["steps"]}


@pytest.mark.parametrize("scheme", ["http", "ws", "https", "wss"])
async def test_a_derper_passes_every_step(start_each_derper: StartRelay, scheme: str) -> None:
    tls = scheme in ("https", "wss")
    async with start_each_derper(tls=tls) as relay:
        flags = ["-cert-name", relay.pin] if tls else []
        code, steps = await probed(relay, scheme, *flags)
    assert code == 0, steps
    assert {step["outcome"] for step in steps.values()} == {"ok"}
    assert steps["login"]["protocol_version"] == 2
    if tls:
        assert steps["tls"]["version"] == "TLSv1.3"
        assert steps["cert"]["pin_matched"] is True


async def test_a_derper_that_refuses_clients_fails_at_the_login(
    start_derper: StartRelay,
) -> None:
    async with start_derper(
        "-verify-client-url=http://127.0.0.1:9/", "-verify-client-url-fail-open=false"
    ) as relay:
        code, steps = await probed(relay, "http")
    assert code == 1
    assert steps["login"]["outcome"] == "failed"
    assert steps["echo"]["outcome"] == "skipped"
