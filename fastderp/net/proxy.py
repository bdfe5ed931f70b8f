"""Finds the environment's proxy for a URL, by the rules of Go's programs. PROTOCOL §13.

No other module reads `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_network
from urllib.parse import SplitResult, urlsplit

from fastderp.util.net import IpAddress, client_ip


def proxy_for(
    scheme: str, host: str, port: int, environ: Mapping[str, str] | None = None
) -> SplitResult | None:
    """Return the proxy for a connection to `host`, or None for a direct one.

    `HTTPS_PROXY` counts for https, `HTTP_PROXY` for http, in upper or else in lower case. A proxy
    without a scheme is `http://`. Loopback is always direct, and so is what `NO_PROXY` lists:
    `*`, addresses, CIDRs, `name` (with its subdomains), `.suffix` or `*.suffix` (subdomains only),
    each but `*` and CIDRs also with `:port`.

    Args:
        scheme: "http" or "https", of the requested URL.
        host: name or address, without brackets.
        port: of the destination; entries of `NO_PROXY` may name a port.
        environ: the variables; None for those of the process.

    Raises ValueError for a proxy that is not a URL, without quoting it.
    """
    variables = os.environ if environ is None else environ
    text = _variable(variables, f"{scheme}_proxy")
    if not text or _is_loopback(host) or _is_exempt(host, port, _variable(variables, "no_proxy")):
        return None
    try:
        return urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:
        # The message omits the URL: it may hold a password.
        raise ValueError(f"{scheme.upper()}_PROXY is not a URL") from None


def _variable(variables: Mapping[str, str], name: str) -> str:
    return (variables.get(name.upper()) or variables.get(name) or "").strip()


def _is_loopback(host: str) -> bool:
    address = client_ip(host)
    if address is not None:
        return address.is_loopback
    return host.lower().removesuffix(".") == "localhost"


def _is_exempt(host: str, port: int, entries: str) -> bool:
    name, address = host.lower().removesuffix("."), client_ip(host)
    return any(
        _matches(entry, name, address, port)
        for entry in map(str.strip, entries.lower().split(","))
        if entry
    )


def _matches(entry: str, name: str, address: IpAddress | None, port: int) -> bool:
    """Return whether an entry of `NO_PROXY` covers a host; a malformed entry covers none."""
    if entry == "*":
        return True
    if "/" in entry:
        return address is not None and _is_within(address, entry)
    wanted, wanted_port = _split_port(entry)
    if wanted_port and wanted_port != str(port):
        return False
    listed = client_ip(wanted)
    if listed is not None or address is not None:
        return listed is not None and listed == address
    suffix = wanted.removeprefix("*").removesuffix(".")
    if suffix.startswith("."):
        return len(suffix) > 1 and name.endswith(suffix)
    return bool(suffix) and (name == suffix or name.endswith(f".{suffix}"))


def _split_port(entry: str) -> tuple[str, str]:
    """Split `host:port` and `[address]:port`; a bare IPv6 address has no port."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    host, colon, port = entry.rpartition(":")
    return (host, port) if colon and ":" not in host else (entry, "")


def _is_within(address: IpAddress, cidr: str) -> bool:
    try:
        network = ip_network(cidr, strict=False)
    except ValueError:
        return False
    return address in network
