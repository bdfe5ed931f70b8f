"""Micro benchmarks of the steps of one login: CPU time of fixed work."""

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.server.accept.derp_login import DerpLogin, LoginTerms, Step
from fastderp.server.admission.address_limits import AddressLimits
from fastderp.server.admission.limits import AddressLimit, ClientClass, Limits
from fastderp.server.certificates.self_signed import self_signed
from fastderp.server.http.message import HeadParser
from fastderp.server.net.stream import Poller, Stream
from fastderp.tls.context import ServerContext
from fastderp.tls.handshake import Handshake
from fastderp.tls.x509 import PrivateKey
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import ClientInfo, ServerInfo, client_info_frame, open_client_info
from fastderp.wire.protocol import HEADER_SIZE

CLIENT = "192.0.2.1"
REQUEST = (
    b"GET /derp HTTP/1.1\r\nHost: derp.example.com\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
)

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


def test_parse_a_request(benchmark: BenchmarkFixture) -> None:
    def parse() -> object:
        return HeadParser().feed(REQUEST)

    assert benchmark(parse) is not None


def test_answer_a_client_info(benchmark: BenchmarkFixture) -> None:
    """Agree on a key, open the box of a ClientInfo, and seal the ServerInfo."""
    relay, client = NodePrivate.generate(), NodePrivate.generate()
    frame = client_info_frame(
        client.public_key, client.box(relay.public_key), ClientInfo(can_ack_pings=True)
    )
    payload = frame[HEADER_SIZE:]

    def answered() -> bytes:
        return open_client_info(relay, payload).server_info_frame(ServerInfo())

    assert benchmark(answered)


def test_log_a_client_in(benchmark: BenchmarkFixture) -> None:
    """Do the same from the client's bytes to those of the relay (PROTOCOL §3)."""
    relay, client = NodePrivate.generate(), NodePrivate.generate()
    terms = LoginTerms(relay, lambda info: False, lambda key, app_name, addr: ServerInfo())
    box = client.box(relay.public_key)
    info = client_info_frame(client.public_key, box, ClientInfo(can_ack_pings=True))

    def login() -> Step:
        login = DerpLogin(terms, CLIENT, fast_start=True)
        login.feed(info)
        step = login.step()
        login.take_output()
        return step

    assert benchmark(login) is Step.ADMIT


def test_find_the_class_of_a_client_behind_20_others(benchmark: BenchmarkFixture) -> None:
    networks = list(ipaddress.IPv4Network("10.0.0.0/8").subnets(new_prefix=13))[:20]
    classes = tuple(ClientClass(str(network), networks=(network,)) for network in networks)
    limits = Limits(classes=classes)
    assert benchmark(limits.class_of, bytes(32), "", address_bytes(CLIENT)) == 0


def test_count_a_connection_and_its_login_by_address(benchmark: BenchmarkFixture) -> None:
    limits = AddressLimits()
    limits.set(Limits(address=AddressLimit(100, logins_per_s=1e9, login_burst=10**9)), list)

    def visit() -> None:
        group = limits.enter(CLIENT)
        limits.take_login(CLIENT)
        limits.leave(group)

    benchmark(visit)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_handshake_with_a_client_of_python(benchmark: BenchmarkFixture, version: str) -> None:
    """Do both sides of a handshake through memory; the client is Python's, with its OpenSSL."""
    key = PrivateKey.generate_p256()
    server = ServerContext([self_signed("127.0.0.1", key)], key.der())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]

    def shake() -> Handshake:
        ours = Handshake(server)
        source, sink = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = context.wrap_bio(source, sink)
        is_finished = False
        while not (is_finished and ours.done):
            try:
                theirs.do_handshake()
                is_finished = True
            except ssl.SSLWantReadError:
                pass
            ours.feed(sink.read())
            ours.step()
            source.write(ours.take_output())
        return ours

    assert benchmark(shake).version == version.replace("_", ".")


@pytest.fixture
def poller() -> Iterator[Poller]:
    loop = asyncio.new_event_loop()
    poller = Poller(loop)
    yield poller
    poller.close()
    loop.close()


def test_a_stream_reads_a_request_answers_and_gives_its_socket_away(
    benchmark: BenchmarkFixture, poller: Poller
) -> None:
    """Serve a request that has arrived, up to the hand-over; a socketpair is part of the time."""

    def serve() -> int:
        ours, theirs = socket.socketpair()
        theirs.send(REQUEST)

        def answer(data: bytes) -> None:
            stream.send(data)

        stream = Stream(poller, ours, answer, lambda error: None, lambda: None)
        stream.start()
        n_answered = len(theirs.recv(1024))
        socket.close(stream.detach())
        theirs.close()
        return n_answered

    assert benchmark(serve) == len(REQUEST)
