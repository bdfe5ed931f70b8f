"""STUN: the answers byte for byte, ignored datagrams, and the sockets."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastderp.errors import EX_OSERR, ListenError
from fastderp.server.stun import responder
from fastderp.server.stun import server as stun
from tests.kit import stun_reference as reference
from tests.kit.relay import eventually

# PROTOCOL §20: a request seen from 127.0.0.1:56360, and its answer.
REQUEST = bytes.fromhex(
    "000100142112a44295b1f1b5eca41dcc023531e2802200087461696c6e6f6465802800045e26399e"
)
ANSWER = bytes.fromhex("0101000c2112a44295b1f1b5eca41dcc023531e2002000080001fd3a5e12a443")
TXID = REQUEST[8:20]
SOFTWARE = bytes.fromhex("802200087461696c6e6f6465")


def request(*attributes: bytes, txid: bytes = TXID, length: int | None = None) -> bytes:
    """Build a binding request with a correct fingerprint after the given attributes."""
    body = b"".join(attributes)
    head = (
        b"\x00\x01"
        + (len(body) + 8 if length is None else length).to_bytes(2)
        + bytes.fromhex("2112a442")
        + txid
    )
    fingerprint = zlib.crc32(head + body) ^ 0x5354554E
    return head + body + bytes.fromhex("80280004") + fingerprint.to_bytes(4)


def answer(datagram: bytes) -> bytes | None:
    """Return the responder's answer; the reference must agree."""
    answers = [
        answer_to(datagram, bytes([127, 0, 0, 1]), 56360)
        for answer_to in (responder.answer_to, reference.answer_to)
    ]
    assert answers[0] == answers[1], datagram
    return answers[0]


def test_the_published_request_gets_the_published_answer() -> None:
    assert answer(REQUEST) == ANSWER
    assert request(SOFTWARE) == REQUEST


def test_an_ipv6_sender_gets_family_2_and_its_address_masked_with_cookie_and_transaction() -> None:
    address = ipaddress.ip_address("2001:db8::1:2").packed
    response = responder.answer_to(REQUEST, address, 4000)
    assert response == reference.answer_to(REQUEST, address, 4000)
    assert response is not None
    assert len(response) == 44
    assert response[:8] == bytes.fromhex("010100182112a442")
    assert response[20:26] == bytes.fromhex("002000140002")
    assert int.from_bytes(response[26:28]) ^ 0x2112 == 4000
    assert (
        bytes(a ^ b for a, b in zip(response[28:], bytes.fromhex("2112a442") + TXID, strict=True))
        == address
    )


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(request(SOFTWARE, length=0), id="the header's length is not looked at"),
        pytest.param(
            request(bytes.fromhex("0001000161000000"), SOFTWARE), id="other attributes, padded"
        ),
        pytest.param(
            request(SOFTWARE, bytes.fromhex("00060000")), id="an empty attribute behind SOFTWARE"
        ),
    ],
)
def test_valid_requests_are_answered(datagram: bytes) -> None:
    assert answer(datagram) is not None


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(REQUEST[:19], id="shorter than a header"),
        pytest.param(REQUEST[:20], id="no attributes"),
        pytest.param(b"\x01\x01" + REQUEST[2:], id="a response"),
        pytest.param(b"\x40\x01" + REQUEST[2:], id="top bits set"),
        pytest.param(REQUEST[:4] + b"\x21\x12\xa4\x43" + REQUEST[8:], id="another cookie"),
        pytest.param(REQUEST[:-1], id="cut"),
        pytest.param(REQUEST + b"\x00", id="one byte behind"),
        pytest.param(REQUEST + bytes(4), id="an attribute behind FINGERPRINT"),
        pytest.param(REQUEST[:-1] + b"\x9f", id="wrong fingerprint"),
        pytest.param(request(), id="no SOFTWARE"),
        pytest.param(request(bytes.fromhex("802200087461696c6e6f6466")), id="other software"),
        pytest.param(
            request(bytes.fromhex("8022000c7461696c6e6f6465")),
            id="an attribute longer than the datagram",
        ),
        pytest.param(SOFTWARE * 3, id="no header"),
    ],
)
def test_other_datagrams_are_not_answered(datagram: bytes) -> None:
    assert answer(datagram) is None


def test_a_request_without_fingerprint_is_not_answered() -> None:
    head = bytes.fromhex("0001000c2112a442") + TXID
    assert answer(head + SOFTWARE) is None


@given(st.binary(max_size=120))
@example(REQUEST)
def test_any_bytes_are_answered_or_ignored(tail: bytes) -> None:
    for datagram in (tail, REQUEST[:20] + tail, request(tail), REQUEST[:-8] + tail):
        response = answer(datagram)
        assert response is None or len(response) <= 32 <= len(datagram)


def test_noise_near_a_valid_request_is_ignored_or_answered_in_few_bytes() -> None:
    random = Random(24)  # fixed, so that a failure is reproducible
    for _ in range(100_000):
        datagram = bytearray(
            REQUEST[: random.randrange(41)] + random.randbytes(random.randrange(12))
        )
        for _ in range(random.randrange(3)):
            if datagram:
                datagram[random.randrange(len(datagram))] = random.randrange(256)
        response = responder.answer_to(bytes(datagram), bytes(16), 1)
        assert response == reference.answer_to(bytes(datagram), bytes(16), 1)
        if response is not None:
            assert len(response) <= 1.1 * len(datagram)


@given(st.integers(0, 8 * len(REQUEST) - 1))
def test_a_flipped_bit_outside_length_never_passes(bit: int) -> None:
    damaged = (int.from_bytes(REQUEST) ^ 1 << bit).to_bytes(len(REQUEST))
    assert answer(damaged) is None


@pytest.fixture
async def server() -> AsyncIterator[stun.StunServer]:
    server = stun.bind_stun("", 0)
    server.start()
    yield server
    server.close()


def requests(server: stun.StunServer) -> dict[str, int]:
    """Return the datagrams by disposition; an answer is counted after it was sent, at the latest at `close`."""
    counted = server.metrics()["stun_requests"]
    assert isinstance(counted, dict)
    return counted


async def ask(
    family: socket.AddressFamily, address: tuple[str, int], *datagrams: bytes
) -> tuple[bytes, tuple[str, int]]:
    """Send datagrams from a fresh socket; return the first answer and the socket's own address."""
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((address[0], 0))
        for datagram in datagrams:
            sock.sendto(datagram, address)
        async with asyncio.timeout(5):
            return await loop.sock_recv(sock, 2048), sock.getsockname()[:2]


async def answer_from(address: str, port: int) -> bytes:
    """Send a request to one of the server's addresses; return the answer from that address."""
    [(family, kind, _, _, where)] = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind) as sock:
        sock.setblocking(False)
        sock.connect(where)
        sock.send(REQUEST)
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(sock, 2048)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "127.3.2.1", "::1"])
async def test_the_answer_leaves_from_the_requested_address(
    server: stun.StunServer, address: str
) -> None:
    assert (await answer_from(address, server.addresses[0][1]))[:2] == b"\x01\x01"
    server.close()
    assert server.metrics()["stun_no_local_addr"] == 0


async def test_a_request_without_its_destination_is_answered_and_counted() -> None:
    """Check a socket without the option that reports the destination."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    server = stun.StunServer([sock])
    server.start()
    assert await answer_from("127.0.0.1", server.addresses[0][1])
    server.close()
    assert server.metrics()["stun_no_local_addr"] == requests(server)["success"] == 1


async def test_an_ipv4_client_of_a_dual_server_is_answered_with_family_1(
    server: stun.StunServer,
) -> None:
    port = server.addresses[0][1]
    response, (_, own_port) = await ask(socket.AF_INET, ("127.0.0.1", port), REQUEST)
    assert response == reference.binding_response(TXID, bytes([127, 0, 0, 1]), own_port)
    server.close()
    assert server.metrics() == {
        "stun_requests": {"success": 1, "not_stun": 0, "read_error": 0, "write_error": 0},
        "stun_addrfamily": {"ipv4": 1, "ipv6": 0},
        "stun_no_local_addr": 0,
        "fastderp_stun_unanswered_total": 0,
        "fastderp_stun_dropped_total": 0,
    }


@pytest.mark.parametrize("n_threads", [1, 2])
def test_requests_that_find_the_receive_buffer_full_are_counted(n_threads: int) -> None:
    server = stun.bind_stun("127.0.0.1", 0, n_threads=n_threads)
    n_sent = 4 * (stun.RECEIVE_BYTES >> 8)
    for _ in range(n_sent // 64):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(64):
                client.sendto(REQUEST, server.addresses[0])
    n_dropped = n_kept = 0

    def all_have_come() -> bool:
        nonlocal n_dropped, n_kept
        n_kept += sum(map(n_readable, (*server.sockets, *server._twins)))
        dropped = server.metrics()["fastderp_stun_dropped_total"]
        assert isinstance(dropped, int)
        n_dropped = dropped
        return n_dropped + n_kept == n_sent

    eventually(all_have_come)
    server.close()
    assert n_kept > 0 and n_dropped > 0
    assert server.metrics()["fastderp_stun_dropped_total"] == n_dropped


def n_readable(sock: socket.socket) -> int:
    n = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(2048, socket.MSG_DONTWAIT):
            n += 1
    return n


async def test_an_ipv6_client_is_answered_on_the_same_port(server: stun.StunServer) -> None:
    if len(server.addresses) < 2:
        pytest.skip("no IPv6 on this machine")
    assert server.addresses[0][1] == server.addresses[1][1]
    response, (_, own_port) = await ask(socket.AF_INET6, ("::1", server.addresses[1][1]), REQUEST)
    assert response == reference.binding_response(
        TXID, ipaddress.ip_address("::1").packed, own_port
    )
    server.close()
    assert server.metrics()["stun_addrfamily"] == {"ipv4": 0, "ipv6": 1}


async def test_junk_is_counted_and_the_next_request_answered(server: stun.StunServer) -> None:
    junk = [b"", b"x" * 1400, os.urandom(40), REQUEST[:-1]]
    response, _ = await ask(socket.AF_INET, ("127.0.0.1", server.addresses[0][1]), *junk, REQUEST)
    assert response[:2] == b"\x01\x01"
    server.close()
    assert requests(server)["not_stun"] == len(junk)


async def test_more_datagrams_than_a_batch_are_all_answered(server: stun.StunServer) -> None:
    n_requests = 200
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", server.addresses[0][1]))
        for _ in range(n_requests):
            sock.send(REQUEST)
        async with asyncio.timeout(5):
            for _ in range(n_requests):
                await loop.sock_recv(sock, 100)


async def test_several_threads_share_the_clients_of_one_port() -> None:
    server = stun.bind_stun("", 0, n_threads=3)
    server.start()
    port = server.addresses[0][1]
    for address in ("127.0.0.1", "::1")[: len(server.addresses)]:
        # Each client has a port of its own. One thread would get all with a probability of 3 ** -31.
        for _ in range(32):
            assert (await answer_from(address, port))[:2] == b"\x01\x01"
    n_asked = 32 * len(server.addresses)
    server.close()
    assert requests(server)["success"] == server.request_counts[0] == n_asked
    assert sum(each.counters()["success"] > 0 for each in server._responders) > 1


async def test_several_threads_are_silent_together() -> None:
    server = stun.bind_stun("127.0.0.1", 0, n_threads=3)
    server.start()
    server.is_silent = True
    for _ in range(32):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(REQUEST, server.addresses[0])
    async with asyncio.timeout(5):
        while server.metrics()["fastderp_stun_unanswered_total"] != 32:
            await asyncio.sleep(0.001)
    server.close()
    assert requests(server)["success"] == 0


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_port_with_several_sockets_belongs_to_one_process(n_threads: int) -> None:
    server = stun.bind_stun("127.0.0.1", 0, n_threads=3)
    port = server.addresses[0][1]
    with pytest.raises(ListenError, match="Address already in use"):
        stun.bind_stun("127.0.0.1", port, n_threads=n_threads)
    # Unless both share it on purpose, as predecessor and successor do.
    successor = stun.bind_stun("127.0.0.1", port, reuse_port=True, n_threads=n_threads)
    server.close()
    successor.close()


async def test_a_name_with_several_addresses_is_served_on_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def two_addresses(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, 0))
            for address in ("127.0.0.1", "127.0.0.2")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    server = stun.bind_stun("relay.example", 0)
    server.start()
    for address in server.addresses:
        response, _ = await ask(socket.AF_INET, address, REQUEST)
        assert response[:2] == b"\x01\x01"
    server.close()
    assert requests(server)["success"] == 2


async def test_after_the_end_no_request_is_answered_and_the_port_is_free() -> None:
    server = stun.bind_stun("127.0.0.1", 0)
    server.start()
    address = server.addresses[0]
    await ask(socket.AF_INET, address, REQUEST)
    server.close()
    server.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)


def test_a_port_in_use_is_refused_and_nothing_stays_bound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            ListenError,
            match=rf"STUN: cannot listen on UDP 0\.0\.0\.0:{port}: Address already in use",
        ) as caught:
            stun.bind_stun("", port)
        assert caught.value.exit_code == EX_OSERR


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: Cannot assign"):
        stun.bind_stun("192.0.2.1", 0)


async def test_a_read_error_is_counted_logged_and_delays_only_the_next_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A socket that cannot be read: TCP, not connected."""
    with socket.socket() as broken:
        server = stun.StunServer([broken.dup()])
        server.start()
        async with asyncio.timeout(5):
            while not caplog.messages:
                await asyncio.sleep(0.001)
        server.close()
    assert "Transport endpoint is not connected; next attempt in 1 s" in caplog.text
    assert requests(server)["read_error"] == 1


# A child process: the interpreter frees its copy of the responder at the end.
FORKED = """
import os, socket, sys, time
from fastderp.server.stun.responder import StunResponder

with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    responder = StunResponder([sock.fileno()])
    responder.start()
    if not (child := os.fork()):
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    before_s = time.process_time()
    time.sleep(0.2)
    print(time.process_time() - before_s)
    responder.stop()
"""


def test_a_forked_child_that_ends_does_not_keep_the_thread_of_its_parent_busy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 0.02
