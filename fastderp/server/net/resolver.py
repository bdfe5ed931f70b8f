"""Looks up addresses and texts in /etc/hosts, then at the nameservers. PROTOCOL §9.6.

Loop thread only. Import this module only to look up names: dnspython costs a start 43 ms and
7 MiB.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
from pathlib import Path
from typing import Any

from fastderp.util.extras import MissingExtra

try:
    import dns.asyncresolver
    import dns.inet
    from dns.exception import DNSException, Timeout
    from dns.rdatatype import AAAA, TXT, A, RdataType
    from dns.resolver import NXDOMAIN, NoAnswer, NoNameservers, NoResolverConfiguration
except ImportError:
    raise MissingExtra("dns", "the lookups of -bootstrap-dns-names") from None

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")


class SystemResolver:
    """Queries a given nameserver, or those of /etc/resolv.conf, read for every query."""

    def __init__(
        self,
        nameserver: str = "",
        port: int = 53,
        *,
        hosts: Path = HOSTS,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        """Query one nameserver, "" for those of `resolv_conf`, after the file `hosts`."""
        self._nameserver = nameserver
        self._port = port
        self._hosts = hosts
        self._resolv_conf = resolv_conf

    async def addresses(self, name: str) -> list[str]:
        """Return the IPv4 and IPv6 addresses of a name, at least one.

        Raises LookupError with the reason if there is none.
        """
        # A thread reads the file: lists of hosts to block can have 100,000 lines.
        if listed := await asyncio.to_thread(addresses_in, self._hosts, name):
            return listed
        answers = await asyncio.gather(
            self._ask(name, A), self._ask(name, AAAA), return_exceptions=True
        )
        found = [
            record.address
            for answer in answers
            if not isinstance(answer, BaseException)
            for record in answer
        ]
        if not found:
            # The error of the first query: a single missing family is not an error.
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        return found

    async def text(self, name: str) -> str:
        """Return the text of a name's first TXT record. Raises LookupError."""
        [first, *_] = await self._ask(name, TXT)
        return b"".join(first.strings).decode("utf-8", "replace")

    async def _ask(self, name: str, kind: RdataType) -> list[Any]:
        """Return the records of one kind, at least one. Raises LookupError."""
        try:
            return list(await self._resolver().resolve(name, kind))
        except NXDOMAIN:
            raise LookupError("there is no such name") from None
        except NoAnswer:
            raise LookupError(f"it has no {kind.name} record") from None
        except NoNameservers:
            raise LookupError("the nameserver cannot answer") from None
        except NoResolverConfiguration:
            raise LookupError("/etc/resolv.conf names no nameserver") from None
        except Timeout:
            raise LookupError("the nameserver does not answer") from None
        except (DNSException, OSError) as error:
            raise LookupError(str(error)) from None

    def _resolver(self) -> dns.asyncresolver.Resolver:
        if not self._nameserver:
            return dns.asyncresolver.Resolver(io.StringIO(usable_lines(self._resolv_conf)))
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [self._nameserver]
        resolver.port = self._port
        return resolver


def usable_lines(resolv_conf: Path) -> str:
    """Return the nameservers and options of a file such as /etc/resolv.conf; "" without it.

    A malformed line is skipped, as the system's resolver does; dnspython would use none of them.
    Names are looked up as they are, without the search list.
    """
    try:
        text = resolv_conf.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.split() for line in text.splitlines()]
    return "\n".join(" ".join(words) for words in lines if words and _is_usable(*words))


def _is_usable(keyword: str, value: str = "", *_: str) -> bool:
    return keyword == "options" or (keyword == "nameserver" and dns.inet.is_address(value))


def addresses_in(hosts: Path, name: str) -> list[str]:
    """Return a name's addresses in a file such as /etc/hosts; none when it is unreadable."""
    wanted = name.rstrip(".").lower()
    found: dict[str, None] = {}
    try:
        with open(hosts, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                address, *names = line.partition("#")[0].split() or [""]
                if wanted in (each.rstrip(".").lower() for each in names):
                    found |= _address(address)
    except OSError:
        return []
    return list(found)


def _address(text: str) -> dict[str, None]:
    """Return the address without its zone; nothing for other text."""
    try:
        return {str(ipaddress.ip_address(text.partition("%")[0])): None}
    except ValueError:
        return {}
