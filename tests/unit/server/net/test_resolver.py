"""Names are looked up as the system does: /etc/hosts first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fastderp.server.net.resolver import SystemResolver, addresses_in, usable_lines

HOSTS = """
127.0.0.1 localhost
192.0.2.7\tcontrol.example Login.Example # a comment, other.example
2001:db8::7 control.example.
nonsense control.example
192.0.2.8 control.example
192.0.2.7 control.example
"""


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("control.example", ["192.0.2.7", "2001:db8::7", "192.0.2.8"]),
        ("CONTROL.example.", ["192.0.2.7", "2001:db8::7", "192.0.2.8"]),
        ("login.example", ["192.0.2.7"]),
        ("other.example", []),
        ("example", []),
    ],
)
def test_a_hosts_file_is_read_as_the_system_reads_it(
    tmp_path: Path, name: str, addresses: list[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    assert addresses_in(hosts, name) == addresses


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"#" * 3_000_000])
def test_an_empty_hosts_file_is_no_error(tmp_path: Path, content: bytes | None) -> None:
    hosts = tmp_path / "hosts"
    if content is not None:
        hosts.write_bytes(content)
    assert addresses_in(hosts, "control.example") == []


def test_a_name_in_the_hosts_file_needs_no_nameserver(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    silent = SystemResolver("127.0.0.1", 9, hosts=hosts)
    assert asyncio.run(silent.addresses("login.example")) == ["192.0.2.7"]


MALFORMED = b"""\xff
# nameserver 192.0.2.1
nameserver
nameserver ns.example
nameserver 127.0.0.1:53
nameserver 127.0.0.1
\tnameserver ::1
search \xe9..example
domain ..
options ndots:x timeout:1
sortlist
\0
"""


def test_malformed_lines_of_a_resolv_conf_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(MALFORMED)
    assert usable_lines(path).splitlines() == [
        "nameserver 127.0.0.1",
        "nameserver ::1",
        "options ndots:x timeout:1",
    ]
    resolver = SystemResolver(resolv_conf=path)._resolver()
    assert [str(server) for server in resolver.nameservers] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("content", [None, b"", b"nameserver ns.example\n"])
def test_a_resolv_conf_without_a_nameserver_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "resolv.conf"
    if content is not None:
        path.write_bytes(content)
    resolver = SystemResolver(hosts=tmp_path / "hosts", resolv_conf=path)
    with pytest.raises(LookupError, match=r"/etc/resolv\.conf names no nameserver"):
        asyncio.run(resolver.addresses("control.example"))
