"""Sends short queries to HTTP services, in bounded time and memory.

Loop thread only. Import this module only for a configured service: aiohttp adds 105 ms and 14 MiB
to a start. (httpx adds a quarter of that, but needs eight times the CPU time per query.)
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from fastderp.net.proxy import proxy_for
from fastderp.util.extras import MissingExtra
from fastderp.util.json_members import folded
from fastderp.util.reasons import errno_text
from fastderp.util.shortage import lookups_are_short, shortage_of

try:
    import aiohttp
    from yarl import URL
except ImportError:
    # `help` and `from fastderp import *` import the classes that query, and do not use them.
    _IS_INSTALLED = False
else:
    _IS_INSTALLED = True

# Limits for one query (connect, send and read) and for the wait before it; 5 s together.
BUDGET_S = 4.0
TURN_S = 1.0
QUESTIONS_AT_ONCE = 64
# A connection is kept for the next login of a storm, and closed before a server would close it: a
# simultaneous close may lose a query.
KEEP_CONNECTION_S = 2.0


class NoAnswer(Exception):
    """No usable answer arrived; `outcome` as in `Verdict`."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class HttpService:
    """An HTTP server that answers short queries.

    Args:
        limit_bytes: maximum size of an answer.
        connector: opens connections to the server; called on first use.
        headers: sent with every query.
        proxy: URL of the proxy; None for a direct connection.

    Raises MissingExtra without aiohttp.
    """

    def __init__(
        self,
        limit_bytes: int,
        connector: Callable[[], aiohttp.BaseConnector],
        *,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
    ) -> None:
        _check_installed()
        self._limit_bytes = limit_bytes
        self._connector = connector
        # The limit applies to bytes on the wire, so the answer must not be compressed.
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "fastderp", **(headers or {})}
        self._proxy = proxy
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def at_url(
        cls, url: URL, limit_bytes: int, headers: Mapping[str, str] | None = None
    ) -> HttpService:
        """Query over TCP, with TLS for https, through the proxy that the environment names.

        Raises ValueError for an unusable proxy.
        """
        # This trusts the system's roots, not those of a Python package.
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
    ) -> HttpService:
        """Query over a unix socket."""
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
        """Send a query; return the status and the body, up to its limit. Raises NoAnswer."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._questions.acquire()
        except TimeoutError:
            raise NoAnswer(
                "busy", f"{QUESTIONS_AT_ONCE} queries already wait for an answer"
            ) from None
        try:
            async with asyncio.timeout(BUDGET_S):
                return await self._ask(method, url, content)
        except TimeoutError:
            raise NoAnswer("timeout", f"no answer within {BUDGET_S:g} s") from None
        except aiohttp.ClientConnectionError as error:
            raise _no_connection(error) from None
        except aiohttp.ClientError:
            raise NoAnswer("malformed", "the answer is not HTTP") from None
        except (OSError, RuntimeError, MemoryError) as error:
            # no thread for the name lookup, or no memory for the connection
            if shortage := shortage_of(error):
                raise _not_asked(shortage) from None
            raise
        finally:
            self._questions.release()

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


def _check_installed() -> None:
    if not _IS_INSTALLED:
        raise MissingExtra(
            "services", "the queries of -verify-clients, -verify-client-url and -secrets-url"
        )


def encoded_url(text: str) -> URL:
    """Return a URL that is already percent-encoded."""
    return URL(text, encoded=True)


def http_url(text: str, example: str) -> URL:
    """Read an http or https URL with a host.

    Raises ValueError without quoting the text, which may hold a password; MissingExtra without
    aiohttp.
    """
    _check_installed()
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("malformed URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"want a URL such as {example}")
    return url


def _proxy(url: URL) -> str | None:
    """Return the environment's proxy for a URL. Raises ValueError for an unusable one."""
    assert url.host is not None
    assert url.port is not None
    found = proxy_for(url.scheme, url.host, url.port)
    if found is None:
        return None
    if found.scheme not in ("http", "https") or not found.hostname:
        # The message omits the value: it may hold a password.
        raise ValueError(
            f"the proxy that {url.scheme.upper()}_PROXY names is neither http://HOST:PORT"
            " nor https://HOST:PORT: correct it, or list the host in NO_PROXY"
        )
    return found.geturl()


def _no_connection(error: aiohttp.ClientConnectionError) -> NoAnswer:
    """Return the reason for a failed connection, and whether a local shortage caused it."""
    shortage = shortage_of(error)
    # A name lookup without descriptors fails with the error of an unknown name.
    if not shortage and isinstance(error, aiohttp.ClientConnectorError) and lookups_are_short():
        shortage = "Too many open files"
    return _not_asked(shortage) if shortage else NoAnswer("unreachable", _reason(error))


def _not_asked(shortage: str) -> NoAnswer:
    return NoAnswer("shortage", f"no query sent, this relay lacks resources: {shortage}")


def _reason(error: aiohttp.ClientConnectionError) -> str:
    """Return the system's error text, without the text that the library adds."""
    cause: Exception = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        # The errno is one of OpenSSL's, not of the system's.
        return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}"
    return errno_text(cause)


# Reading answers


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def members(status: int, body: bytes, *, more_may_follow: bool = False) -> dict[str, Any]:
    """Return the JSON object that is the body of a 200, its members' names folded. Raises NoAnswer.

    With `more_may_follow`, bytes after the first JSON value are ignored, else they are refused.
    """
    if 300 <= status < 400:
        raise NoAnswer("status", f"it redirects (status {status}), which is not followed")
    if status != 200:
        raise NoAnswer("status", f"it answers with status {status}")
    text = body.decode("utf-8", "replace").strip(" \t\r\n")
    try:
        document, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise NoAnswer("malformed", "the answer is not JSON") from None
    if end < len(text) and not more_may_follow:
        raise NoAnswer("malformed", "the answer has bytes after the JSON")
    if not isinstance(document, dict):
        raise NoAnswer("malformed", "the answer is not a JSON object")
    return folded(document)


def checked(document: dict[str, Any], name: str, kind: type | tuple[type, ...], what: str) -> Any:
    """Return a member of a folded object; None where it is null or absent.

    Raises NoAnswer for a value of another type.

    Args:
        name: the member's name as the service spells it.
        kind: the type of its JSON value.
        what: the type in words, for the error.
    """
    value = document.get(name.casefold())
    # Python's bool is a subclass of int.
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise NoAnswer("malformed", f'"{name}" in the answer is not {what}')
