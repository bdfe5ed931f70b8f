"""Who else is asked whether a key may use the relay: the local tailscaled and an admission URL. PROTOCOL §8.

Loop thread only. Whatever they answer, or do not, costs bounded time and memory, and is one `Verdict`. Import this module only
when somebody is to be asked: aiohttp costs a start 105 ms and 14 MiB. (httpx costs a quarter of that, but eight times the CPU
per question.)
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from fastderp.keys import NodePublic
from fastderp.server.verdict import ALLOWED, Verdict

DEFAULT_SOCKET = "/var/run/tailscale/tailscaled.sock"

# For one question: connecting, sending and reading; and for its turn before that. 5 s together.
BUDGET_S = 4.0
TURN_S = 1.0
QUESTIONS_AT_ONCE = 64
# A connection is kept for the next login of a storm, and closed long before any server would: who closes first has no race.
KEEP_CONNECTION_S = 2.0

URL_ANSWER_LIMIT_BYTES = 4096
# tailscaled describes the whole node; one in a large tailnet has a few KiB.
TAILSCALED_ANSWER_LIMIT_BYTES = 256 * 1024

# The LocalAPI wants to know which version of it is spoken.
TAILSCALE_CAPABILITY = "145"

_DECODER = json.JSONDecoder()


class NoAnswer(Exception):
    """Nothing usable came back; `outcome` as in `Verdict`."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class Tailscaled:
    """Allows the keys that the tailscaled of this machine knows. Fails closed."""

    name = "tailscaled"

    def __init__(self, socket_path: str = "") -> None:
        """Ask over the unix socket at `socket_path`, "" for tailscaled's usual one."""
        self.socket_path = socket_path or DEFAULT_SOCKET
        self._service = _Service(
            TAILSCALED_ANSWER_LIMIT_BYTES,
            lambda: aiohttp.UnixConnector(self.socket_path, limit=QUESTIONS_AT_ONCE, keepalive_timeout=KEEP_CONNECTION_S),
            headers={"Tailscale-Cap": TAILSCALE_CAPABILITY},
        )

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Ask whether tailscaled knows the key."""
        try:
            status, body = await self._get(f"whois?addr=nodekey%3A{key.hex}")
            if status == 404:
                return Verdict(False, "denied", "tailscaled does not know it")
            _members(status, body)
        except NoAnswer as error:
            return Verdict(False, error.outcome, f"tailscaled at {self.socket_path}: {error}")
        return ALLOWED

    async def own_key(self) -> NodePublic:
        """Return the key of this machine's own node. Raises NoAnswer."""
        try:
            node = _members(*await self._get("status?peers=false")).get("self")
            if isinstance(node, dict):
                return NodePublic.from_text(_folded(node)["publickey"])
        except NoAnswer as error:
            raise NoAnswer(error.outcome, f"tailscaled at {self.socket_path}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        raise NoAnswer("malformed", f"tailscaled at {self.socket_path} does not say who it is")

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()

    async def _get(self, question: str) -> tuple[int, bytes]:
        url = URL(f"http://local-tailscaled.sock/localapi/v0/{question}", encoded=True)
        status, body = await self._service.exchange("GET", url)
        if b"invalid 'addr' parameter" in body:
            raise NoAnswer("status", "too old to look keys up; update it")
        return status, body


class AdmissionUrl:
    """Asks a service of the operator's about every key and address.

    What it says counts. What happens when it cannot be reached, or takes longer than BUDGET_S, is `fail_open`'s to say; any other answer
    than the wanted one, and more questions at once than QUESTIONS_AT_ONCE can get through, are a no.
    """

    name = "url"

    def __init__(self, url: str, *, fail_open: bool = True) -> None:
        """Ask at an http or https `url`. Raises ValueError, never quoting the URL, which may hold a password."""
        try:
            self._url = URL(url)
        except ValueError:
            raise ValueError("malformed URL") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ValueError("want a URL such as https://admission.example.com/derp")
        self.fail_open = fail_open
        self.host: str = self._url.host
        # The system's roots, as other programs use them, and not a list that came with a package.
        tls = ssl.create_default_context()
        self._service = _Service(
            URL_ANSWER_LIMIT_BYTES,
            lambda: aiohttp.TCPConnector(ssl=tls, limit=QUESTIONS_AT_ONCE, keepalive_timeout=KEEP_CONNECTION_S),
            proxy=_proxy(self._url),
        )

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Ask whether the key may come in from this address."""
        question = json.dumps({"NodePublic": key.text, "Source": ip}, separators=(",", ":")).encode()
        try:
            status, body = await self._service.exchange("POST", self._url, question)
            if status == 403:
                return Verdict(False, "denied", f"{self.host} says no")
            allow = _members(status, body).get("allow")
            if allow is not None and not isinstance(allow, bool):
                raise NoAnswer("malformed", '"Allow" is neither true nor false')
        except NoAnswer as error:
            detail = f"{self.host}: {error}"
            if self.fail_open and error.outcome in ("unreachable", "timeout"):
                return Verdict(True, "fail_open", detail)
            return Verdict(False, error.outcome, detail)
        return ALLOWED if allow else Verdict(False, "denied", f"{self.host} says no")

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()


class _Service:
    """An HTTP server that answers short questions."""

    def __init__(
        self,
        limit_bytes: int,
        connector: Callable[[], aiohttp.BaseConnector],
        *,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._connector = connector
        # An encoded answer would have to be inflated before it could be limited.
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "fastderp", **(headers or {})}
        self._proxy = proxy
        self._turns = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def exchange(self, method: str, url: URL, content: bytes | None = None) -> tuple[int, bytes]:
        """Ask; return the status and at most so many bytes of the body. Raises NoAnswer."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise NoAnswer("busy", f"{QUESTIONS_AT_ONCE} questions wait for an answer already") from None
        try:
            async with asyncio.timeout(BUDGET_S):
                return await self._ask(method, url, content)
        except TimeoutError:
            raise NoAnswer("timeout", f"no answer within {BUDGET_S:g} s") from None
        except aiohttp.ClientConnectionError as error:
            raise NoAnswer("unreachable", _reason(error)) from None
        except aiohttp.ClientError:
            raise NoAnswer("malformed", "the answer is not HTTP") from None
        finally:
            self._turns.release()

    async def _ask(self, method: str, url: URL, content: bytes | None) -> tuple[int, bytes]:
        if self._session is None:
            self._session = self._open_session()
        async with self._session.request(
            method, url, data=content, proxy=self._proxy, allow_redirects=False, skip_auto_headers=("Content-Type",)
        ) as response:
            return response.status, await self._beginning(response.content)

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._connector(),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def _beginning(self, content: aiohttp.StreamReader) -> bytes:
        body = b""
        while len(body) < self._limit_bytes and (piece := await content.read(self._limit_bytes - len(body))):
            body += piece
        return body


def _proxy(url: URL) -> str | None:
    """Return the proxy that the environment wants for a URL, as for other programs."""
    assert url.host is not None
    if proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)


def _reason(error: aiohttp.ClientConnectionError) -> str:
    """Return what the system said, without the words of the library around it."""
    cause: Exception = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        # Its errno is OpenSSL's and no number of the system's.
        return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}"
    number = cause.errno if isinstance(cause, OSError) else None
    return os.strerror(number) if number and number > 0 else str(cause)


def _members(status: int, body: bytes) -> dict[str, Any]:
    """Return the JSON object that a 200 begins with, names folded. Raises NoAnswer."""
    if 300 <= status < 400:
        raise NoAnswer("status", f"it redirects (status {status}), which is not followed")
    if status != 200:
        raise NoAnswer("status", f"it answers with status {status}")
    try:
        document, _ = _DECODER.raw_decode(body.decode("utf-8", "replace").lstrip(" \t\r\n"))
    except (ValueError, RecursionError):
        raise NoAnswer("malformed", "the answer is not JSON") from None
    if not isinstance(document, dict):
        raise NoAnswer("malformed", "the answer is not a JSON object")
    return _folded(document)


def _folded(document: dict[str, Any]) -> dict[str, Any]:
    return {name.casefold(): value for name, value in document.items()}
