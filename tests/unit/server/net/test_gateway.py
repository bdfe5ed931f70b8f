"""The gateway of the default route."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from fastderp.server.net.gateway import private_gateway

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"


def in_file(address: str) -> str:
    """Return an address as the kernel writes it: a number of this machine."""
    return f"{int.from_bytes(IPv4Address(address).packed, sys.byteorder):08X}"


def routes(*lines: tuple[str, str, str]) -> str:
    return HEAD + "".join(
        f"eth0\t{in_file(destination)}\t{in_file(gateway)}\t{flags}\t0\t0\t0\t00000000\n"
        for destination, gateway, flags in lines
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            routes(("172.17.0.0", "0.0.0.0", "0001"), ("0.0.0.0", "172.17.0.1", "0003")),
            "172.17.0.1",
        ),
        (routes(("0.0.0.0", "0.0.0.0", "0001"), ("0.0.0.0", "10.0.2.2", "0003")), "10.0.2.2"),
        (routes(("0.0.0.0", "8.8.8.8", "0003")), None),
        (routes(("0.0.0.0", "10.0.0.1", "0002")), None),
        (HEAD, None),
        ("", None),
        (HEAD + "eth0\tx\ty\tz\nlo\n", None),
    ],
)
def test_the_private_gateway_of_the_default_route_is_found(
    tmp_path: Path, text: str, found: str | None
) -> None:
    file = tmp_path / "route"
    file.write_text(text)
    assert private_gateway(file) == (IPv4Address(found) if found else None)


def test_a_system_without_the_file_has_no_gateway(tmp_path: Path) -> None:
    assert private_gateway(tmp_path / "route") is None
