"""`/debug/varz` and `/debug/vars` of derper and fastderp-relay: names, types, labels, values.

PROTOCOL §14.
"""

import asyncio
import json
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from .conftest import StartRelay
from .deviations import OUR_METRICS, THEIR_METRICS, THEIR_VARIABLES
from .gokit import GoClient, GoPrograms
from .relays import Relay, Transport

PATIENCE_S = 30.0


def page(relay: Relay, name: str) -> str:
    """Return a debug page of a relay."""
    scheme = "https" if relay.root else "http"
    context = ssl._create_unverified_context() if relay.root else None
    with urllib.request.urlopen(
        f"{scheme}://127.0.0.1:{relay.port}/debug/{name}", timeout=10, context=context
    ) as answer:
        text: str = answer.read().decode()
        return text


def varz(relay: Relay) -> dict[str, tuple[str, dict[str, float]]]:
    """Return each metric's type ("untyped" if it has none) and its samples by labels."""
    text = page(relay, "varz")
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"# TYPE (\w+) (\w+)", line):
            found[match[1]] = (match[2], {})
        elif match := re.fullmatch(r"(\w+)(\{.*\})? (\S+)", line):
            name, rest = match[1], match[2] or ""
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if found.get(base, ("",))[0] in ("histogram", "summary"):
                rest, name = name.removeprefix(base) + rest, base
            found.setdefault(name, ("untyped", {}))[1][rest] = float(match[3])
    return found


def shape(relay: Relay, without: Iterable[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and labels by name, without metrics of one relay only and without versions."""
    found = {}
    for name, (kind, samples) in varz(relay).items():
        if not any(re.fullmatch(pattern, name) for pattern in without):
            labels = frozenset(
                re.sub(r'(version|binary)="[^"]*[-.a-z][^"]*"', r"\1", rest) for rest in samples
            )
            found[name] = (
                kind,
                labels
                if name not in ("derper_tls_active_version", "derper_tls_request_version")
                else frozenset(),
            )
    return found


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def both(
    request: pytest.FixtureRequest, start_derper: StartRelay, start_fastderp: StartRelay
) -> AsyncIterator[list[Relay]]:
    """Run derper and fastderp-relay with the same flags."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(start(tls=request.param))
            for start in (start_derper, start_fastderp)
        ]


async def test_every_metric_of_derper_exists_with_its_type_and_labels(both: list[Relay]) -> None:
    theirs, ours = (
        shape(relay, without)
        for relay, without in zip(both, (THEIR_METRICS, OUR_METRICS), strict=True)
    )
    assert ours == theirs


def variables(members: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the type of each value in the JSON of `/debug/vars`."""
    for name, value in members.items():
        if isinstance(value, dict):
            yield f"{path}{name}", "object"
            yield from variables(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", "text" if isinstance(value, str) else "number"


async def test_every_variable_of_derper_exists_with_its_type(both: list[Relay]) -> None:
    theirs, ours = (
        {
            name: kind
            for name, kind in variables(json.loads(page(relay, "vars")))
            if not any(re.fullmatch(pattern, name) for pattern in without)
        }
        for relay, without in zip(both, (THEIR_VARIABLES, OUR_METRICS), strict=True)
    )
    assert theirs.items() <= ours.items()
    assert all(name.startswith("process_") for name in ours.keys() - theirs.keys())


def told(relay: Relay) -> dict[str, float]:
    """Return every sample that is not zero."""
    return {
        name + labels: n
        for name, (_, samples) in varz(relay).items()
        for labels, n in samples.items()
        if n
    }


@pytest.mark.timeout(600)
async def test_two_clients_are_counted_alike(both: list[Relay], go_programs: GoPrograms) -> None:
    for relay in both:
        flags = relay.go_flags(Transport.TLS_1_3 if relay.root else Transport.PLAIN)
        async with (
            await GoClient.start(go_programs.derpkit, *flags) as ann,
            await GoClient.start(go_programs.derpkit, *flags) as bob,
        ):
            await talk(ann, bob)
            # derper also counts the scrape itself as a request in progress.
            active = {ACTIVE: 2.0 + (relay is both[0])} if relay.root else {}
            expected = COUNTED | active
            assert await settled(relay, expected) == expected, relay.program
        gone = await settled(
            relay, {"derp_current_connections": 0, "derp_current_home_connections": 0}
        )
        assert set(gone.values()) == {0}
        if relay.root:
            active = {ACTIVE: 0.0 + (relay is both[0])}
            assert await settled(relay, active) == active


async def talk(ann: GoClient, bob: GoClient) -> None:
    """Send four packets to bob and two to an absent key, one of each disco; declare ann's home."""
    await ann.do("preferred", preferred=True)
    for data in ("00" * 10, "00" * 100, "00" * 1000, DISCO):
        await ann.do("send", peer=bob.key, data=data)
        await bob.next("packet")
    await ann.do("send", peer=NOBODY, data="00" * 50)
    await ann.do("send", peer=NOBODY, data=DISCO)
    await ann.next("peer_gone")
    await ann.do("ping")


async def settled(relay: Relay, expected: dict[str, float]) -> dict[str, float]:
    """Wait up to a time limit until metrics have these values; return their values."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        now = await asyncio.to_thread(told, relay)
        seen = {name: now.get(name, 0) for name in expected}
        if seen == expected or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(0.02)


ACTIVE = 'derper_tls_active_version{version="1.3"}'
NOBODY = "nodekey:" + "42" * 32
DISCO = (b"TS\xf0\x9f\x92\xac" + bytes(56)).hex()

COUNTED = {
    "derp_accepts": 2,
    "derp_current_connections": 2,
    "derp_current_home_connections": 1,
    "derp_clients_local": 2,
    "derp_clients_total": 2,
    "derp_packets_received": 6,
    'derp_packets_received_kind{kind="disco"}': 2,
    'derp_packets_received_kind{kind="other"}': 4,
    "derp_bytes_received": 10 + 100 + 1000 + 62 + 50 + 62,
    "derp_packets_sent": 4,
    "derp_bytes_sent": 10 + 100 + 1000 + 62,
    'derp_packets_dropped{reason="unknown_dest",kind="disco"}': 1,
    'derp_packets_dropped{reason="unknown_dest",kind="other"}': 1,
    'derp_bytes_dropped{reason="unknown_dest",kind="disco"}': 62,
    'derp_bytes_dropped{reason="unknown_dest",kind="other"}': 50,
    "derp_peer_gone_not_here_frames": 1,
    "derp_got_ping": 1,
    "derp_sent_pong": 1,
    "derp_home_moves_in": 0,
    "derp_watchers": 0,
    "derp_unknown_frames": 0,
    # four packets, a notice and a pong, one after another
    "derp_buffered_write_frames_count": 6,
    "derp_buffered_write_frames_sum": 6,
    "tls_listener_rejected_connections": 0,
}
