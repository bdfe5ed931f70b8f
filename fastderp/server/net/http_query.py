"""Short questions to HTTP services: whatever they answer, or do not, costs bounded time and memory.

Loop thread only. Import this module only when somebody is to be asked: aiohttp costs a start 105 ms and 14 MiB. (httpx costs a
quarter of that, but eight times the CPU per question.)
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from yarl import URL

from fastderp.net.proxy import proxy_for

# For one question: connecting, sending and reading; and for its turn before that. 5 s together.
BUDGET_S = 4.0
TURN_S = 1.0
QUESTIONS_AT_ONCE = 64
# A connection is kept for the next login of a storm, and closed long before any server would: who closes first has no race.
KEEP_CONNECTION_S = 2.0

_DECODER = json.JSONDecoder()


class NoAnswer(Exception):
    """Nothing usable came back; `outcome` as in `Verdict`."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class Service:
    """An HTTP server that answers short questions.

    Args:
        limit_bytes: what is read of an answer.
        connector: makes the way there, on first use.
        headers: sent with every question.
        proxy: what is asked to pass it on; None for nobody.
    """

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

    @classmethod
    def at_url(
        cls, url: URL, limit_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Service:
        """Ask over TCP, with TLS for https, through the proxy that the environment names."""
        # The system's roots, as other programs use them, and not a list that came with a package.
        tls = ssl.create_default_context()
        return cls(
            limit_bytes,
            lambda: aiohttp.TCPConnector(
                ssl=tls, limit=QUESTIONS_AT_ONCE, keepalive_timeout=KEEP_CONNECTION_S
            ),
            headers=headers,
            proxy=_proxy(url),
        )

    @classmethod
    def at_socket(
        cls, path: str, limit_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Service:
        """Ask over a unix socket."""
        return cls(
            limit_bytes,
            lambda: aiohttp.UnixConnector(
                path, limit=QUESTIONS_AT_ONCE, keepalive_timeout=KEEP_CONNECTION_S
            ),
            headers=headers,
        )

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def exchange(
        self, method: str, url: URL, content: bytes | None = None
    ) -> tuple[int, bytes]:
        """Ask; return the status and at most so many bytes of the body. Raises NoAnswer."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise NoAnswer(
                "busy", f"{QUESTIONS_AT_ONCE} questions wait for an answer already"
            ) from None
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
            method,
            url,
            data=content,
            proxy=self._proxy,
            allow_redirects=False,
            skip_auto_headers=("Content-Type",),
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
        while len(body) < self._limit_bytes and (
            piece := await content.read(self._limit_bytes - len(body))
        ):
            body += piece
        return body


def http_url(text: str, example: str) -> URL:
    """Read a URL with a host, http or https. Raises ValueError, never quoting the text, which may hold a password."""
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("malformed URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"want a URL such as {example}")
    return url


def _proxy(url: URL) -> str | None:
    """Return the proxy that the environment wants for a URL. Raises ValueError for one of no use."""
    assert url.host is not None
    assert url.port is not None
    found = proxy_for(url.scheme, url.host, url.port)
    if found is None:
        return None
    if found.scheme not in ("http", "https") or not found.hostname:
        # Not quoted: the variable may hold a password.
        raise ValueError(
            f"the proxy that {url.scheme.upper()}_PROXY names is neither http://HOST:PORT"
            " nor https://HOST:PORT: correct it, or list the host in NO_PROXY"
        )
    return found.geturl()


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


def members(status: int, body: bytes) -> dict[str, Any]:
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
    return folded(document)


def folded(document: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its members' names in lower case, as Go matches them."""
    return {name.casefold(): value for name, value in document.items()}
