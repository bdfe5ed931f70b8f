"""Finds the client of a request behind trusted proxies, from their headers.

Headers count when a trusted proxy sent them. They are read from the last entry to the first, up to
the first address that is no trusted proxy's: the client may have forged those before it. Pure
functions.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastderp.util.net import IpNetwork, client_ip

Headers = Iterable[tuple[str, str]]

# The elements of a Forwarded header, and the parameters of one (RFC 7239 §4). Clients write a part of
# the header: whatever its text, the time to read it grows with its length only.
_ELEMENT = re.compile(r'(?:[^",]|"[^"]*")+')
_PARAMETER = re.compile(r'(?:[^";]|"[^"]*")+')
_PORT = re.compile("[0-9]{1,5}")


class ProxyHeaderError(Exception):
    """The PROXY header is malformed, forbidden or missing; `reason` is the counter's label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class TrustedProxies(NamedTuple):
    """The proxies whose headers about their clients count.

    Args:
        networks: their addresses.
        unix: whether a connection over a unix socket comes from one.
    """

    networks: tuple[IpNetwork, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """Read a comma-separated list of networks, addresses and the word `unix`.

        Raises ValueError that names the item.
        """
        items = [item.strip() for item in text.split(",") if item.strip()]
        networks = []
        for item in items:
            if item != "unix":
                try:
                    networks.append(ipaddress.ip_network(item))
                except ValueError as error:
                    raise ValueError(
                        f"{error}; want networks such as 10.0.0.0/8, addresses, or unix"
                    ) from None
        return cls(tuple(networks), "unix" in items)

    def __bool__(self) -> bool:
        return bool(self.networks or self.unix)

    def __str__(self) -> str:
        return ", ".join([*map(str, self.networks), *(["unix"] if self.unix else [])])

    def trusts(self, ip: str) -> bool:
        """Whether an address is a proxy's; "" is the peer of a unix socket."""
        if not self.networks and not self.unix:
            return False
        if not ip:
            return self.unix
        address = client_ip(ip)
        return address is not None and any(address in network for network in self.networks)


class Origin(NamedTuple):
    """The origin of a connection or a request.

    Args:
        address: (ip, port) of the client if known, else of the proxy; port 0 when no header has it.
        through_proxy: whether the connection comes through a trusted proxy.
        is_hidden: whether the client's address is unknown; `address` is the proxy's.
        headers_count: whether the HTTP headers of the connection are a trusted proxy's.
    """

    address: tuple[str, int]
    through_proxy: bool = False
    is_hidden: bool = False
    headers_count: bool = False

    @classmethod
    def of_peer(cls, address: tuple[str, int], trusted: TrustedProxies) -> Origin:
        """Return the origin of a connection by its peer's address."""
        is_proxy = trusted.trusts(address[0])
        return cls(address, is_proxy, is_proxy, is_proxy)

    @property
    def own_ip(self) -> str:
        """The client's own IP; "" when a proxy does not send it."""
        return "" if self.is_hidden else self.address[0]

    def behind(self, address: tuple[str, int] | None, trusted: TrustedProxies) -> Origin:
        """Return the origin that a trusted proxy names in front of the client's bytes.

        None for a connection without a client address, such as the proxy's health check, whose HTTP
        headers do not count.
        """
        if address is None:
            return self._replace(headers_count=False)
        is_proxy = trusted.trusts(address[0])
        return Origin(address, True, is_proxy, is_proxy)

    def of_request(self, headers: Headers, trusted: TrustedProxies) -> Origin:
        """Return the origin of a request on a connection with this origin.

        `X-Forwarded-For` comes first, then `Forwarded`, then `X-Real-IP`. Ignores all of them
        unless the connection is a trusted proxy's own.
        """
        if not self.headers_count:
            return self
        origin = self
        for hop in _hops(headers):
            address = _address(hop)
            if address is None:
                break
            origin = origin.behind(address, trusted)
            if not origin.is_hidden:
                break
        return origin


def _hops(headers: Headers) -> Iterator[str]:
    """Yield the texts of the first kind of header that is present, the nearest hop first."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in ("x-forwarded-for", "forwarded", "x-real-ip"):
            found.setdefault(name, []).append(value)
    if "x-forwarded-for" in found:
        return reversed(",".join(found["x-forwarded-for"]).split(","))
    if "forwarded" in found:
        hops = [hop for line in found["forwarded"] for hop in _forwarded_hops(line)]
        return reversed(hops)
    return iter(found.get("x-real-ip", ())[-1:])


def _forwarded_hops(line: str) -> list[str]:
    """Return the `for` of each element of a header; "" for an element without one, or malformed.

    An unbalanced quote in the client's part of the line would hide the proxy's part.
    """
    if "\\" in line or line.count('"') % 2:
        return [""]
    hops = []
    for element in _ELEMENT.findall(line):
        pairs = (parameter.partition("=") for parameter in _PARAMETER.findall(element))
        parameters = {name.strip().lower(): value.strip() for name, _, value in pairs}
        hops.append(parameters.get("for", "").strip('"'))
    return hops


def _address(text: str) -> tuple[str, int] | None:
    """Read `ip`, `ip:port`, `[ipv6]` or `[ipv6]:port`; None for other text, also for `unknown`."""
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or ":" not in host or colon not in ("", ":"):
            return None
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    else:
        host, colon, port = text, "", ""
    if "%" in host or (colon and not (_PORT.fullmatch(port) and int(port) < 65536)):
        return None
    ip = client_ip(host)
    return None if ip is None else (str(ip), int(port or 0))
