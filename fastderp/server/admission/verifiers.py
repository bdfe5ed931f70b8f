"""Asks tailscaled or an admission URL which keys may use the relay. PROTOCOL §8.

Loop thread only. Every answer, or its absence, becomes one `Verdict`. Import this module only for a
configured service, as `http_query`.
"""

from __future__ import annotations

import json
from typing import Any

from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.server.net.http_query import (
    HttpService,
    NoAnswer,
    checked,
    encoded_url,
    http_url,
    members,
)
from fastderp.util.json_members import folded
from fastderp.wire.keys import NodePublic

DEFAULT_SOCKET = "/var/run/tailscale/tailscaled.sock"

URL_ANSWER_LIMIT_BYTES = 4096
# tailscaled describes the whole node; one in a large tailnet has a few KiB.
TAILSCALED_ANSWER_LIMIT_BYTES = 256 * 1024

# The LocalAPI requires the version of its client.
TAILSCALE_CAPABILITY = "145"


class Tailscaled:
    """Admits the keys in the network map of this machine's tailscaled. PROTOCOL §8.

    Without an answer it admits none.
    """

    name = "tailscaled"

    def __init__(self, socket_path: str = "") -> None:
        """Query over the unix socket at `socket_path`, "" for tailscaled's default path."""
        self.socket_path: str = socket_path or DEFAULT_SOCKET
        self._service = HttpService.at_socket(
            self.socket_path, TAILSCALED_ANSWER_LIMIT_BYTES, {"Tailscale-Cap": TAILSCALE_CAPABILITY}
        )

    def __str__(self) -> str:
        return f"tailscaled at {self.socket_path}"

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Query tailscaled for the `key`; up to 5 s per query. `ip` has no effect.

        A denial is certain only from a tailscaled that runs and has its own node: without a network
        map (just started, logged out, own key expired) it has no key at all. So a first denial is
        followed by a query of its state and a second query for the key. Errors are in the verdict.
        """
        try:
            if await self._knows(key):
                return ALLOWED
            await self._own_key()
            if await self._knows(key):
                return ALLOWED
        except NoAnswer as error:
            return Verdict(False, error.outcome, f"{self}: {error}")
        return Verdict(False, "denied", "not in tailscaled's network map")

    async def own_key(self) -> NodePublic:
        """Return the key of this machine's own node. Raises NoAnswer if tailscaled lacks it."""
        try:
            return await self._own_key()
        except NoAnswer as error:
            raise NoAnswer(error.outcome, f"{self}: {error}") from None

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()

    async def _own_key(self) -> NodePublic:
        return _own_key(members(*await self._get("status?peers=false")))

    async def _knows(self, key: NodePublic) -> bool:
        status, body = await self._get(f"whois?addr=nodekey%3A{key.hex}")
        if status == 404:
            return False
        _check_whois(members(status, body), key)
        return True

    async def _get(self, question: str) -> tuple[int, bytes]:
        url = encoded_url(f"http://local-tailscaled.sock/localapi/v0/{question}")
        status, body = await self._service.exchange("GET", url)
        if b"invalid 'addr' parameter" in body:
            raise NoAnswer("status", "too old to look up keys; update it")
        return status, body


def _own_key(status: dict[str, Any]) -> NodePublic:
    """Return this node's key from tailscaled's status. Raises NoAnswer if it is absent."""
    state = checked(status, "BackendState", str, "a string")
    if state != "Running":
        raise NoAnswer(
            "not_ready", f"its state is {state or 'unknown'}, not Running: see tailscale status"
        )
    node = checked(status, "Self", dict, "an object")
    text = checked(folded(node or {}), "PublicKey", str, "a string")
    try:
        own = NodePublic.from_text(text or "")
    except ValueError:
        own = NodePublic(bytes(32))
    if own.is_zero:
        raise NoAnswer("not_ready", "it has no node of its own: see tailscale status")
    return own


def _check_whois(answer: dict[str, Any], key: NodePublic) -> None:
    """Check that an answer describes the node with this key. Raises NoAnswer if it does not."""
    node = checked(answer, "Node", dict, "an object")
    checked(answer, "UserProfile", dict, "an object")
    checked(answer, "CapMap", dict, "an object")
    named = checked(folded(node or {}), "Key", str, "a string")
    if named is not None and named != key.text:
        raise NoAnswer("malformed", "the answer is about another key")


class AdmissionUrl:
    """Queries the operator's service about every key and address. PROTOCOL §8.

    `fail_open` is the verdict while the service cannot be reached or takes longer than 4 s. Any
    other answer than `{"Allow":true}` is a denial, and so are too many concurrent queries and a
    shortage of descriptors, memory or threads on this machine.
    """

    name = "url"

    def __init__(self, url: str, *, fail_open: bool = True) -> None:
        """Query an http or https `url`; `fail_open` admits clients while it is unreachable.

        Raises ValueError for an unusable URL or proxy of the environment, without quoting it,
        because it may contain a password.
        """
        self._url = http_url(url, "https://admission.example.com/derp")
        self.fail_open = fail_open
        self.host: str = str(self._url.host)
        self._service = HttpService.at_url(self._url, URL_ANSWER_LIMIT_BYTES)

    def __str__(self) -> str:
        # The rest of the URL may hold a secret.
        meanwhile = "all" if self.fail_open else "no"
        policy = f"{meanwhile} clients are admitted while it cannot be reached"
        return f"{self._url.scheme}://{self.host} ({policy})"

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Query, for up to 5 s, whether to admit `key` from `ip`. Errors are in the verdict."""
        question = json.dumps(
            {"NodePublic": key.text, "Source": ip}, separators=(",", ":")
        ).encode()
        try:
            status, body = await self._service.exchange("POST", self._url, question)
            if status == 403:
                return Verdict(False, "denied", f"{self.host} says no")
            answer = members(status, body, more_may_follow=True)
            allow = checked(answer, "Allow", bool, "true or false")
        except NoAnswer as error:
            detail = f"{self.host}: {error}"
            if self.fail_open and error.outcome in ("unreachable", "timeout"):
                return Verdict(True, "fail_open", detail)
            return Verdict(False, error.outcome, detail)
        return ALLOWED if allow else Verdict(False, "denied", f"{self.host} says no")

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()
