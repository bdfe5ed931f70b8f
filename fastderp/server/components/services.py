"""Small components: the relay's key, client limits, STUN, bootstrap DNS, tunnels."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastderp.errors import KeyFileError, ListenError, ShortageError, UsageError
from fastderp.server.admission.limits import Limits
from fastderp.server.components.component import Component, is_there, readable_by_all
from fastderp.server.http.bootstrap_dns import BootstrapDns, Unpublished, checked_name
from fastderp.server.observe.values import Value
from fastderp.server.server import Server
from fastderp.server.settings import BootstrapSettings, KeySettings, LimitSettings, StunSettings
from fastderp.server.stun.server import StunServer, bind_stun, stun_metrics, stun_on
from fastderp.server.stun.watch import StunWatch
from fastderp.util import files
from fastderp.util.text import printable
from fastderp.util.threads import in_thread
from fastderp.wire.keys import NodePrivate, load_or_create_server_key

if TYPE_CHECKING:
    from fastderp.server.http.tunnel import Tunnels

log: logging.Logger = logging.getLogger("fastderp")

T = TypeVar("T")


class Identity(Component):
    """The relay's key."""

    name = "key"

    def __init__(self, settings: KeySettings) -> None:
        self._file = settings.file
        self.key: NodePrivate = NodePrivate.generate()

    async def open(self) -> None:
        """Read the key file, or create it when absent. Raises KeyFileError."""
        if self._file is not None:
            self.key = load_or_create_server_key(self._file)

    async def check(self) -> list[str]:
        """Read the key file, or check that it can be created. Raises KeyFileError."""
        if self._file is not None and not is_there(self._file):
            try:
                files.check_creatable(self._file)
            except OSError as error:
                raise KeyFileError(
                    f"key file {self._file}: cannot create it: {error.strerror}"
                ) from error
            return [f"{self._file} does not exist: the start creates it"]
        await self.open()
        return self.describe()

    def describe(self) -> list[str]:
        """Return the public key and the file of the private one."""
        kept = f"kept in {self._file}" if self._file else "in memory only"
        return [f"public key {self.key.public_key.text}, {kept}"]

    def warnings(self) -> list[str]:
        """Return a warning when every user can read the key."""
        return readable_by_all(self._file)


class ClientLimits(Component):
    """Sets the limits of clients and of their addresses."""

    name = "limits"

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._server: Server | None = None
        self._limits = Limits(address=settings.address)

    async def open(self) -> None:
        """Read the file of -rate-config. Raises ConfigError."""
        self._limits = self._load()

    async def check(self) -> list[str]:
        """Read the file."""
        await self.open()
        return self.describe()

    async def start(self, server: Server) -> None:
        """Limit the clients of this server."""
        self._server = server
        if self._has_limits:
            server.set_limits(self._limits)

    def describe(self) -> list[str]:
        """Return the limits in force."""
        lines = []
        if self._settings.queue_packets:
            n = self._settings.queue_packets
            lines.append(f"up to {n} packets of a kind wait for a client")
        return lines + (self._limits.describe() if self._has_limits else [])

    @property
    def reloadable(self) -> bool:
        """Whether -rate-config names a file."""
        return self._settings.rate_file is not None

    @property
    def files(self) -> list[Path]:
        """The file of -rate-config."""
        return [self._settings.rate_file] if self._settings.rate_file is not None else []

    async def reload(self) -> str:
        """Read the file again."""
        assert self._server is not None
        limits = await in_thread("limits", self._load)
        if limits == self._limits:
            return "unchanged"
        self._limits = limits
        self._server.set_limits(limits)
        return "; ".join(limits.describe()) or "none"

    @property
    def _has_limits(self) -> bool:
        return self._settings.rate_file is not None or self._limits.limits_addresses

    def _load(self) -> Limits:
        settings = self._settings
        if settings.rate_file is None:
            return self._limits
        from fastderp.server.admission.limit_file import load_limits

        return load_limits(settings.rate_file, settings.address)


class Stun(Component):
    """STUN on a UDP port, or none."""

    name = "STUN"

    def __init__(
        self,
        settings: StunSettings | None,
        inherited: list[socket.socket],
        tls_faults: Callable[[], list[str]] = list,
    ) -> None:
        """Use the inherited sockets, if any; be silent while `tls_faults` returns reasons."""
        self._settings = settings
        self._inherited = inherited
        self._tls_faults = tls_faults
        self._stun: StunServer | None = None
        self._watch: StunWatch | None = None

    async def open(self) -> None:
        """Bind the UDP port. Raises ListenError."""
        if self._settings is not None and self._inherited:
            self._stun = stun_on(self._inherited)
        elif self._settings is not None:
            self._stun = bind_stun(
                self._settings.host, self._settings.port, reuse_port=self._settings.reuse_port
            )

    async def check(self) -> list[str]:
        """Resolve the host. Raises ListenError."""
        if self._settings is None:
            return ["off"]
        return [f"UDP {check_host(self._settings.host)}, port {self._settings.port}"]

    @property
    def port(self) -> int | None:
        """The UDP port; None without STUN."""
        addresses = [] if self._stun is None else self._stun.addresses
        return addresses[0][1] if addresses else None

    def serve(self) -> None:
        """Start answering. Raises ShortageError when the system refuses a thread."""
        if self._stun is not None:
            try:
                self._stun.start()
            except OSError as error:
                raise ShortageError(f"STUN: no thread: {error.strerror}") from error
            self._watch = StunWatch(self._stun, self._tls_faults)
            self._watch.start()

    def drain(self) -> None:
        """Stop answering, and leave a shared port to the other process."""
        if self._stun is None or self._settings is None:
            return
        if self._watch is not None:
            self._watch.close()
        if self._settings.reuse_port:
            self._stun.close()
        else:
            # The socket stays, so that senders get no error.
            self._stun.is_silent = True

    async def close(self) -> None:
        """Stop answering."""
        if self._watch is not None:
            self._watch.close()
        if self._stun is not None:
            self._stun.close()

    def metrics(self) -> Mapping[str, Value]:
        """Return the answers by kind."""
        return stun_metrics({}) if self._stun is None else self._stun.metrics()


class Bootstrap(Component):
    """The names that `/bootstrap-dns` resolves for clients without DNS."""

    name = "bootstrap DNS"

    def __init__(self, settings: BootstrapSettings) -> None:
        """Check the names. Raises UsageError that quotes the malformed one."""
        self.dns: BootstrapDns = _bootstrap_dns(settings)
        self._stack = contextlib.AsyncExitStack()

    async def start(self, server: Server) -> None:
        """Start resolving the names."""
        await self._stack.enter_async_context(self.dns.running())

    async def close(self) -> None:
        """Stop resolving."""
        await self._stack.aclose()

    def metrics(self) -> Mapping[str, Value]:
        """Return requests and answers."""
        return self.dns.metrics()


class CaptiveTunnels(Component):
    """CONNECT to hosts of tailscale.com (-ace)."""

    name = "tunnels"

    def __init__(self) -> None:
        from fastderp.server.http.tunnel import Tunnels

        self.tunnels: Tunnels = Tunnels()

    async def close(self) -> None:
        """Close every tunnel."""
        self.tunnels.close()

    def metrics(self) -> Mapping[str, Value]:
        """Return requests and open tunnels."""
        return self.tunnels.metrics()


def check_host(host: str) -> str:
    """Resolve a host to listen on; return its addresses. Raises ListenError."""
    if not host:
        return "every address"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ListenError(f"cannot listen on {printable(host)}: {reason}") from None
    return ", ".join(dict.fromkeys(str(info[4][0]) for info in found))


def _bootstrap_dns(settings: BootstrapSettings) -> BootstrapDns:
    published = [_named("bootstrap-dns-names", text, checked_name) for text in settings.published]
    unpublished = [
        _named("unpublished-bootstrap-dns-names", text, Unpublished.parse)
        for text in settings.unpublished
    ]
    if not published and not unpublished:
        return BootstrapDns()
    # Imported on use, because it loads dnspython.
    from fastderp.server.net.resolver import SystemResolver

    return BootstrapDns(published, unpublished, SystemResolver())


def _named(flag: str, text: str, read: Callable[[str], T]) -> T:
    """Read an item of a flag's list. Raises UsageError that quotes the item."""
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f'-{flag} "{printable(text)}": {error}') from None
