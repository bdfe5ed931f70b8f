"""Requests the debug pages of a running relay, over TCP, TLS or a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastderp.errors import EX_UNAVAILABLE, ConfigError, DerpError, UsageError
from fastderp.util.net import bracketed, is_address
from fastderp.util.reasons import own_text
from fastderp.util.text import printable

# Maximum of bytes read of an answer; a page of 1,000 clients has about 700 kB.
_LIMIT_BYTES = 16 << 20
_PORTS = {"http": 80, "https": 443}


class PageError(DerpError):
    """The relay does not answer, or not with its pages; the text says why."""

    exit_code = EX_UNAVAILABLE


class NoRelayError(PageError):
    """Nothing listens at the address, or another program than a relay does."""


class AccessError(PageError):
    """The relay refuses its debug pages to this machine."""


@dataclass(frozen=True, slots=True)
class Address:
    """The place of a relay: `socket_path` of a unix socket, or host and port.

    `prefix` is the relay's `-path-prefix`, without a slash at its end.
    """

    scheme: str = "http"
    host: str = ""
    port: int = 0
    prefix: str = ""
    socket_path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `http://HOST:PORT`, `https://…`, `[HOST]:PORT` or `unix:PATH`. Raises UsageError.

        Without a host it is this machine.
        """
        kind, _, path = text.partition(":")
        if kind == "unix":
            if not path:
                raise UsageError(f"{text}: want unix:PATH")
            return cls(socket_path=path)
        whole = bracketed(text) if is_address(text) else text
        if whole.startswith(":"):
            whole = f"127.0.0.1{whole}"
        try:
            parts = urlsplit(whole if "://" in whole else f"http://{whole}")
            if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
                raise ValueError
            port = parts.port or _PORTS[parts.scheme]
        except ValueError:
            raise UsageError(
                f"{text}: want [HOST]:PORT, http://…, https://… or unix:PATH"
            ) from None
        prefix = parts.path.partition("/debug")[0].rstrip("/")
        return cls(parts.scheme, parts.hostname, port, prefix)

    def __str__(self) -> str:
        if self.socket_path:
            return f"unix:{self.socket_path}"
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Access:
    """How a relay's pages are requested.

    Args:
        debug_key: the content of the relay's $TS_DEBUG_KEY_PATH; "" to send none.
        cafile: roots for https instead of the system's.
        cert_name: the name in the relay's certificate, if it is not the address's host.
        timeout_s: of each step: connecting, a read.
    """

    debug_key: str = ""
    cafile: Path | None = None
    cert_name: str = ""
    timeout_s: float = 5.0

    def tls_context(self) -> ssl.SSLContext:
        """Return the context for https. Raises ConfigError."""
        try:
            return ssl.create_default_context(cafile=self.cafile)
        except OSError as error:
            raise ConfigError(f"-cafile {self.cafile}: {own_text(error)}") from None


class RelayPages:
    """The debug pages of one relay; usable from one thread at a time."""

    def __init__(self, address: Address, access: Access) -> None:
        """Raises ConfigError when the roots for https cannot be read."""
        self.address = address
        self._access = access
        self._context = access.tls_context() if address.scheme == "https" else None

    @contextmanager
    def connection(self) -> Iterator[Requests]:
        """Open one connection for several requests. Raises PageError, also from the block."""
        connection = _Connection(self.address, self._access, self._context)
        try:
            yield Requests(connection, self.address, self._access.debug_key)
        except ConnectionRefusedError:
            raise NoRelayError(f"{self.address}: connection refused") from None
        except FileNotFoundError:
            raise NoRelayError(f"{self.address}: no such socket") from None
        except ssl.SSLCertVerificationError as error:
            raise PageError(
                f"{self.address}: {error.verify_message}; see -cafile and -cert-name"
            ) from None
        except TimeoutError:
            raise PageError(f"{self.address}: no answer") from None
        except OSError as error:
            raise PageError(f"{self.address}: {own_text(error)}") from None
        except (http.client.HTTPException, ValueError) as error:
            raise NoRelayError(
                f"{self.address}: not the answer of a relay: {printable(str(error))}"
            ) from None
        finally:
            connection.close()


class Requests:
    """The requests on one connection; made by `RelayPages.connection`."""

    def __init__(
        self, connection: http.client.HTTPConnection, address: Address, debug_key: str
    ) -> None:
        self._connection = connection
        self._address = address
        self._key = [("debugkey", debug_key)] if debug_key else []

    def varz(self) -> str:
        """Return the metrics as Prometheus text."""
        return self._get("varz")

    def clients(self, sort: str, limit: int) -> dict[str, Any]:
        """Return the JSON of up to `limit` connected clients; `sort` is a value of the page."""
        answer = json.loads(
            self._get(
                "clients/", ("all", "1"), ("format", "json"), ("sort", sort), ("limit", limit)
            )
        )
        if not isinstance(answer, dict):
            raise ValueError("no JSON object")
        return answer

    def _get(self, page: str, *parameters: tuple[str, object]) -> str:
        query = urlencode([*parameters, *self._key])
        path = f"{self._address.prefix}/debug/{page}"
        self._connection.request("GET", f"{path}?{query}" if query else path)
        response = self._connection.getresponse()
        body = response.read(_LIMIT_BYTES)
        if response.status == 403:
            raise AccessError(
                f"{self._address} refuses its debug pages: ask the relay's -debug-addr, run this "
                "on its machine or from a tailscale address, or give -debug-key-file the file of "
                "its $TS_DEBUG_KEY_PATH"
            )
        if response.status != 200:
            raise NoRelayError(
                f"{self._address}: answer {response.status}: no relay, or its debug pages are "
                "at another address (-debug-addr)"
            )
        return body.decode()


class _Connection(http.client.HTTPConnection):
    """A connection that may be over a unix socket, or expect another name in the certificate."""

    def __init__(self, address: Address, access: Access, context: ssl.SSLContext | None) -> None:
        super().__init__(address.host or "localhost", address.port or 80, timeout=access.timeout_s)
        self._address = address
        self._access = access
        self._context = context

    def connect(self) -> None:
        """Connect; called by the first request."""
        if self._address.socket_path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self._access.timeout_s)
            self.sock.connect(self._address.socket_path)
            return
        super().connect()
        if self._context is not None:
            name = self._access.cert_name or self._address.host
            self.sock = self._context.wrap_socket(self.sock, server_hostname=name)
