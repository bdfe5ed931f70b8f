"""`/debug/clients/` of derper 1.104.7 and fastderp-relay gives equal answers. PROTOCOL §22."""

import asyncio
import json
import re
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from typing import Any

import pytest

from fastderp.client import HTTPClient
from fastderp.wire.keys import NodePrivate

from .conftest import StartRelay
from .relays import Relay

pytestmark = pytest.mark.timeout(600)

KEYS = [NodePrivate(bytes([i]) * 32) for i in (1, 2, 3)]
NAMES = ("alpha", "beta", "alpha")
KEY = KEYS[0].public_key.text
# fields that depend on the moment and on the relay's own numbers
OWN = ("connNum", "connectedAt", "connected", "remote")
# derper does not tell these.
MORE = {"dropped", "waitingBytes", "rttMicros"}

QUERIES = [
    *("", "sort=key", "limit=5", "foo=1", "all=1", "all=", "all=0", "app=alpha", "app="),
    "app=alpha&app=beta",
    *("ip=127.0.0.1", "ip=127.0.0.2", "ip=::ffff:127.0.0.1", "cidr=127.0.0.1/8", "cidr=::/0"),
    f"key={KEY}",
    *("all=1&app=beta", "all=1&limit=2", "all=1&limit=2&sort=-key", "all=1&limit=5000"),
    "all=1&sort=-conn",
    *("all=1&sort=tx", "all=1&sort=-rxpkts&limit=1", f"all=1&after={KEY}", "all=1&sort=rx&after=0"),
    *("all=1&ip=127.0.0.1", "ip=127.0.0.1&cidr=::/0", "ip=x", "ip=", "cidr=127.0.0.1", "cidr=x"),
    *("key=abc", "key="),
    *("all=1&sort=foo", "all=1&sort=", "all=1&limit=0", "all=1&limit=x", "all=1&limit=-1"),
    "all=1&after=zz",
    *("all=1&sort=rx&after=x", "all=1&sort=connected&after=soon", "all=1&sort=connected&after=30m"),
]  # fmt: skip


def asked(relay: Relay, query: str) -> tuple[int, str, bytes]:
    """Return status, type and body of an answer."""
    try:
        with urllib.request.urlopen(
            relay.url.removesuffix("derp") + f"debug/clients/?{query}"
        ) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def said(relay: Relay, query: str) -> dict[str, Any]:
    """Return the content of an answer without each relay's own fields."""
    form = {"html": asked(relay, query)[:2], "xml": asked(relay, f"{query}&format=xml")[:2]}
    status, kind, body = asked(relay, f"{query}&format=json")
    found: dict[str, Any] = {"status": (status, kind), **form}
    if status == 200:
        document = json.loads(body)
        for client in document.get("clients", ()):
            found["members"] = sorted(client.keys() - MORE)
            for name in (*OWN, *MORE & client.keys()):
                del client[name]
        if "next" in document:
            document["next"] = sorted(
                re.sub(r"(afterconn)=\d+", r"\1", document["next"][1:]).split("&")
            )
        found["document"] = document
    return found


async def test_queries_get_equal_answers(
    start_derper: StartRelay, start_fastderp: StartRelay
) -> None:
    answers = []
    for start in (start_derper, start_fastderp):
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(start())
            for key, name in zip(KEYS, NAMES, strict=True):
                client = await stack.enter_async_context(HTTPClient(relay.url, key, app_name=name))
                await client.recv()
            answers.append(
                {query: await asyncio.to_thread(said, relay, query) for query in QUERIES}
            )
    theirs, ours = answers
    assert {q: (theirs[q], ours[q]) for q in QUERIES if theirs[q] != ours[q]} == {}
