"""The sockets of an address: wildcards, families, zones, machines without full IPv6."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastderp.errors import ListenError
from fastderp.server.net.listen import (
    datagram_sockets,
    is_local,
    is_wildcard,
    listen_sockets,
    steer_to_successor,
)
from fastderp.server.stun import server as stun
from tests.kit.own_network import BECOME_ROOT, is_possible
from tests.unit.server.stun.test_server import answer_from

WILDCARDS = ["", "0.0.0.0", "::", "::ffff:0.0.0.0"]
BOTH = {socket.AF_INET, socket.AF_INET6}


def close(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("host", WILDCARDS)
def test_any_wildcard_serves_both_families_on_one_port(host: str) -> None:
    tcp = listen_sockets(host, 0)
    udp = datagram_sockets(host, 0, lambda sock: None)
    for sockets in (tcp, udp):
        assert {sock.family for sock in sockets} == BOTH
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, tcp[0].getsockname()[1]), timeout=5).close()
    close(*tcp, *udp)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "relay.example", "1.2", "::ffff:127.0.0.1"])
def test_an_address_and_a_name_are_not_wildcards(host: str) -> None:
    assert not is_wildcard(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.0.1", "::1", "localhost", "unix:/x"])
def test_only_this_machine_reaches_loopback_and_unix_sockets(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "x.invalid"])
def test_other_machines_reach_other_addresses(host: str) -> None:
    assert not is_local(host)


def test_an_open_socket_is_as_local_as_its_address() -> None:
    for host, expected in (("127.0.0.1", True), ("0.0.0.0", False)):
        with socket.create_server((host, 0)) as sock:
            assert is_local([sock]) is expected


def test_a_mapped_address_is_the_ipv4_address_in_it() -> None:
    [tcp] = listen_sockets("::ffff:127.0.0.1", 0)
    assert tcp.getsockname()[0] == "127.0.0.1"
    close(tcp)


def test_a_machine_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIpv6(socket.socket):
        def __init__(self, family: int = -1, *args: int, **kwargs: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", NoIpv6)
    for host in (*WILDCARDS, "localhost"):
        tcp = listen_sockets(host, 0)
        assert [sock.family for sock in tcp] == [socket.AF_INET]
        close(*tcp)
    with pytest.raises(OSError, match=r"cannot listen on \[::1\]:1: Address family not supported"):
        listen_sockets("::1", 1)


@pytest.mark.parametrize("error", [errno.ENOPROTOOPT, errno.EOPNOTSUPP])
def test_a_system_that_lacks_the_options_of_connections_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    set_option = socket.socket.setsockopt

    def partly(sock: socket.socket, level: int, option: int, value: int) -> None:
        if level == socket.IPPROTO_TCP or option in (
            socket.SO_KEEPALIVE,
            socket.SO_RCVBUF,
            stun.IP_PKTINFO,
            socket.IPV6_RECVPKTINFO,
        ):
            raise OSError(error, os.strerror(error))
        set_option(sock, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", partly)
    sockets = listen_sockets("", 0)
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, sockets[0].getsockname()[1]), timeout=5).close()
    close(*sockets)
    stun.bind_stun("", 0).close()


def test_another_error_of_an_option_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(socket.socket, "setsockopt", refused)
    with pytest.raises(OSError, match="No buffer space available"):
        listen_sockets("127.0.0.1", 0)


def test_a_free_port_is_free_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a first IPv4 port that is taken in IPv6."""
    taken = socket.socket(socket.AF_INET6)
    taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    taken.bind(("::", 0))
    taken.listen()
    bad_port = taken.getsockname()[1]

    class Unlucky(socket.socket):
        n_offers = 0

        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            if self.family == socket.AF_INET and address[1] == 0:
                Unlucky.n_offers += 1
                if Unlucky.n_offers == 1:
                    address = (address[0], bad_port)
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Unlucky)
    tcp = listen_sockets("", 0)
    assert len(tcp) == 2 and Unlucky.n_offers == 2
    assert tcp[0].getsockname()[1] != bad_port
    close(taken, *tcp)


# a network namespace: loopback with an IPv6 address and a link-local one, but without ::1
NO_LOOPBACK_IPV6 = """
ip link set lo up
ip addr add fd00::7/64 dev lo nodad
ip addr add fe80::7/64 dev lo nodad
ip addr del ::1/128 dev lo
exec "$0" -m tests.unit.server.net.test_listen
"""


@pytest.mark.skipif(not is_possible(), reason="no network of our own to be had here")
def test_ipv6_is_served_where_loopback_has_no_ipv6_address_and_zones_are_kept() -> None:
    done = subprocess.run(
        [*BECOME_ROOT, "sh", "-e", "-c", NO_LOOPBACK_IPV6, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def main() -> None:
    """Bind and connect in a network without ::1; run by the test above."""
    tcp = listen_sockets("", 0)
    assert {sock.family for sock in tcp} == BOTH, tcp
    socket.create_connection(("fd00::7", tcp[0].getsockname()[1]), timeout=5).close()
    [zoned] = listen_sockets("fe80::7%lo", 0)
    socket.create_connection(("fe80::7%lo", zoned.getsockname()[1]), timeout=5).close()
    listed = listen_sockets("localhost", 0)
    assert [sock.family for sock in listed] == [socket.AF_INET], listed
    for host, asked in (("", "fd00::7"), ("", "fe80::7%lo"), ("fe80::7%lo", "fe80::7%lo")):
        asyncio.run(ask_stun(host, asked))


async def ask_stun(host: str, asked: str) -> None:
    """Query a STUN server at one address of `host`; accept answers from that address only."""
    server = stun.bind_stun(host, 0)
    server.start()
    try:
        assert (await answer_from(asked, server.addresses[0][1]))[:2] == b"\x01\x01"
    finally:
        server.close()


if __name__ == "__main__":
    main()


def accept(sock: socket.socket, n: int) -> None:
    """Accept n connections, which the kernel may still be queueing, and check that no more wait."""
    sock.settimeout(30)
    for _ in range(n):
        sock.accept()[0].close()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_successor_gets_the_new_connections_and_the_queued_ones_stay(host: str) -> None:
    [previous] = listen_sockets(host, 0, reuse_port=True)
    port = previous.getsockname()[1]
    queued = [socket.create_connection((host, port), timeout=5) for _ in range(5)]
    [successor] = listen_sockets(host, port, reuse_port=True)
    steer_to_successor(previous)
    new = [socket.create_connection((host, port), timeout=5) for _ in range(40)]
    accept(previous, 5)
    accept(successor, 40)
    previous.close()
    new += [socket.create_connection((host, port), timeout=5) for _ in range(5)]
    accept(successor, 5)
    [third] = listen_sockets(host, port, reuse_port=True)
    steer_to_successor(successor)
    new += [socket.create_connection((host, port), timeout=5) for _ in range(20)]
    # the same for the next one
    accept(third, 20)
    accept(successor, 0)
    close(successor, third, *queued, *new)


def test_without_a_successor_a_steered_socket_goes_on_accepting() -> None:
    [only] = listen_sockets("127.0.0.1", 0, reuse_port=True)
    steer_to_successor(only)
    clients = [socket.create_connection(only.getsockname(), timeout=5) for _ in range(5)]
    accept(only, 5)
    close(only, *clients)


def test_a_port_is_shared_only_with_those_who_share_it() -> None:
    [only] = listen_sockets("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        listen_sockets("127.0.0.1", only.getsockname()[1], reuse_port=True)
    close(only)


def test_a_unix_socket_of_a_process_that_does_not_accept_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(path)
        listening.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            if waiting.connect_ex(path):
                break
        with pytest.raises(ListenError, match="in use"):
            listen_sockets(f"unix:{path}", 0)


def test_a_link_local_address_without_its_interface_is_explained() -> None:
    with pytest.raises(
        ListenError, match=r"link-local address needs its interface, such as \[fe80"
    ):
        listen_sockets("fe80::1", 0)
