"""Dialling a node: families, races, proxies (PROTOCOL §13)."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fastderp.client import DerpNode, DerpRegion, HTTPClient
from fastderp.errors import DialError
from fastderp.net import dial
from fastderp.net.stream import Stream
from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import ServerInfo
from fastderp.wire.protocol import FrameType
from tests.kit.certificates import self_signed, server_context
from tests.unit.fake_relay import fake_server, stream_pairs

V4, V6 = socket.AF_INET, socket.AF_INET6


class Network:
    """A fake TCP that records each dial; `refused` families and hosts fail, `silent` ones hang."""

    def __init__(self) -> None:
        self.dialled: list[tuple[str, int, socket.AddressFamily]] = []
        self.refused: set[socket.AddressFamily | str] = set()
        self.silent: set[socket.AddressFamily | str] = set()
        self.streams: list[Stream] = []
        self._open = AsyncExitStack()

    async def close(self) -> None:
        await self._open.aclose()

    async def connect(self, host: str, port: int, family: socket.AddressFamily) -> Stream:
        self.dialled.append((host, port, family))
        if {family, host} & self.refused:
            raise DialError(f"{host}: refused")
        if {family, host} & self.silent:
            await asyncio.Event().wait()
        near, _far = await self._open.enter_async_context(stream_pairs())
        self.streams.append(Stream(*near))
        return self.streams[-1]


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    network = Network()
    monkeypatch.setattr(dial, "_connect", network.connect)
    yield network
    await network.close()


@pytest.mark.parametrize(
    ("host_name", "ipv4", "ipv6", "dialled"),
    [
        ("a.example", "", "", {("a.example", V4), ("a.example", V6)}),
        ("a.example", "192.0.2.1", "2001:db8::1", {("192.0.2.1", V4), ("2001:db8::1", V6)}),
        ("a.example", "192.0.2.1", "none", {("192.0.2.1", V4)}),
        ("a.example", "none", "", {("a.example", V6)}),
        ("a.example", "2001:db8::1", "", {("a.example", V6)}),
        ("192.0.2.9", "", "", {("192.0.2.9", V4)}),
        ("2001:db8::9", "", "", {("2001:db8::9", V6)}),
        ("192.0.2.9", "", "2001:db8::1", {("192.0.2.9", V4), ("2001:db8::1", V6)}),
    ],
)
async def test_each_family_is_dialled_at_the_nodes_address(
    network: Network, host_name: str, ipv4: str, ipv6: str, dialled: set[tuple[str, int]]
) -> None:
    network.refused = {V4, V6}
    node = DerpNode("1a", 1, host_name, ipv4=ipv4, ipv6=ipv6)
    with pytest.raises(DialError, match="refused"):
        await dial.dial_node(node, 443)
    assert {(host, family) for host, _, family in network.dialled} == dialled
    assert {port for _, port, _ in network.dialled} == {443}


async def test_a_reason_that_both_families_have_is_given_once(network: Network) -> None:
    network.refused = {V4, V6}
    with pytest.raises(DialError, match=r"^a\.example: refused$"):
        await dial.dial_node(DerpNode("1a", 1, "a.example"), 443)


async def test_node_with_both_families_disabled_is_an_error(network: Network) -> None:
    with pytest.raises(DialError, match="both disabled"):
        await dial.dial_node(DerpNode("1a", 1, "a.example", ipv4="none", ipv6="none"), 443)
    assert network.dialled == []


async def test_a_family_that_fails_or_hangs_does_no_harm(network: Network) -> None:
    node = DerpNode("1a", 1, "a.example")
    network.refused, network.silent = {V6}, set()
    assert await dial.dial_node(node, 443) in network.streams
    network.refused, network.silent = set(), {V4}
    assert await dial.dial_node(node, 443) in network.streams


async def test_the_slower_of_two_connections_is_closed(network: Network) -> None:
    winner = await dial.dial_node(DerpNode("1a", 1, "a.example"), 443)
    for stream in network.streams:
        if stream is not winner:
            assert await stream.read(1) == b""
    winner.abort()


async def test_a_dial_cancelled_while_the_slower_attempt_ends_closes_both(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = asyncio.Event()

    async def connect(host: str, port: int, family: socket.AddressFamily) -> Stream:
        if family is V6:
            return await network.connect(host, port, family)
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0)
        raise AssertionError

    monkeypatch.setattr(dial, "_connect", connect)
    dialling = asyncio.create_task(dial.dial_node(DerpNode("1a", 1, "a.example"), 443))
    await ending.wait()
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    [stream] = network.streams
    assert await stream.read(1) == b""


async def test_preferred_ipv6_has_a_head_start(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "IPV4_DELAY_S", 60)
    await dial.dial_node(DerpNode("1a", 1, "a.example"), 443, prefer_ipv6=True)
    assert [family for _, _, family in network.dialled] == [V6]


async def test_ipv4_follows_when_preferred_ipv6_is_silent(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "IPV4_DELAY_S", 0.01)
    network.silent = {V6}
    await dial.dial_node(DerpNode("1a", 1, "a.example"), 443, prefer_ipv6=True)
    assert [family for _, _, family in network.dialled] == [V6, V4]


async def test_lone_ipv4_does_not_wait_for_a_preferred_ipv6(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "IPV4_DELAY_S", 60)
    await dial.dial_node(DerpNode("1a", 1, "192.0.2.1"), 443, prefer_ipv6=True)


async def never_secured(stream: Stream, host: str) -> Stream:
    raise AssertionError("no HTTPS proxy is in the way")


async def dial_all(*nodes: DerpNode) -> dial.Reached:
    return await dial.dial_region(
        DerpRegion(1, "one", nodes=nodes),
        default_port=443,
        prefer_ipv6=False,
        https=True,
        secure_proxy=never_secured,
    )


@pytest.mark.usefixtures("no_proxies")
async def test_after_a_silent_node_the_next_one_is_tried_in_time(
    network: Network,
) -> None:
    network.silent, network.refused = {"192.0.2.1"}, {"192.0.2.3"}
    silent, answering, closed = (
        DerpNode(f"1{x}", 1, f"192.0.2.{n}") for n, x in enumerate("abc", 1)
    )
    only_stun = DerpNode("1d", 1, "192.0.2.4", stun_only=True)
    reached, failed = await asyncio.gather(
        dial_all(silent, answering), dial_all(only_stun, silent, closed), return_exceptions=True
    )
    assert isinstance(reached, dial.Reached) and reached.node == answering
    assert str(failed) == (
        "region one: 1a: 192.0.2.1 port 443: no answer within 1.5 s; 1c: 192.0.2.3: refused"
    )
    assert "192.0.2.4" not in {host for host, _, _ in network.dialled}


@pytest.mark.usefixtures("no_proxies")
async def test_after_a_node_that_refuses_the_next_one_is_tried_at_once(network: Network) -> None:
    network.refused = {"192.0.2.1"}
    first, second = DerpNode("1a", 1, "192.0.2.1"), DerpNode("1b", 1, "192.0.2.2", derp_port=8443)
    assert (await dial_all(first, second)).node == second
    assert network.dialled == [("192.0.2.1", 443, V4), ("192.0.2.2", 8443, V4)]


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variable", "use_tls", "port"),
    [
        ("", None, 443),
        ("1", None, 3340),
        ("true", None, 3340),
        ("0", None, 443),
        ("1", True, 443),
        ("", False, 3340),
    ],
)
async def test_without_tls_a_regions_port_is_3340(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    use_tls: bool | None,
    port: int,
) -> None:
    monkeypatch.setenv("TS_DEBUG_USE_DERP_HTTP", variable)
    network.refused = {V4}
    region = DerpRegion(
        1, nodes=(DerpNode("1a", 1, "192.0.2.1"), DerpNode("1b", 1, "192.0.2.2", derp_port=8443))
    )
    async with HTTPClient.for_region(
        lambda: region, NodePrivate.generate(), use_tls=use_tls, lazy=True
    ) as client:
        with pytest.raises(DialError, match="refused"):
            await client.connect()
    assert network.dialled == [("192.0.2.1", port, V4), ("192.0.2.2", 8443, V4)]


@pytest.mark.usefixtures("no_proxies")
async def test_an_environment_variable_selects_plain_http(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TS_DEBUG_USE_DERP_HTTP", "1")
    async with fake_server() as server:
        region = DerpRegion(1, nodes=(DerpNode("1a", 1, "127.0.0.1", derp_port=server.port),))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True
        ) as client:
            connecting = asyncio.create_task(client.connect())
            head, _ = await server.next_login()
            await connecting
        assert head.startswith(b"GET /derp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".example"])
async def test_unknown_names_are_dial_errors(host: str) -> None:
    with pytest.raises(DialError, match=host[:10]):
        await dial.dial_node(DerpNode("1a", 1, host), 443)


class Proxy:
    """An HTTP or HTTPS proxy that tunnels every request to `target`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.answer = b"HTTP/1.1 200 OK\r\n\r\n"
        self.heads: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        if b" 200 " in self.answer:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()


@asynccontextmanager
async def proxy_to(target: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = listener.sockets[0].getsockname()[1]
    yield proxy
    listener.close()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def region_client(host_name: str, port: int, *, use_tls: bool = False) -> HTTPClient:
    region = DerpRegion(1, nodes=(DerpNode("1a", 1, host_name, derp_port=port),))
    return HTTPClient.for_region(lambda: region, NodePrivate.generate(), use_tls=use_tls, lazy=True)


@pytest.mark.usefixtures("no_proxies")
async def test_regions_are_reached_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_server() as server, proxy_to(server.port) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        async with region_client("derp.example", 8443) as client:
            connecting = asyncio.create_task(client.connect())
            head, _ = await server.next_login()
            await connecting
            assert b"\r\nHost: derp.example:8443\r\n" in head
        user = base64.b64encode(b"me:p@ss")
        assert proxy.heads == [
            b"CONNECT derp.example:8443 HTTP/1.1\r\n"
            b"Host: derp.example:8443\r\n"
            b"Proxy-Authorization: Basic " + user + b"\r\n\r\n"
        ]


@pytest.fixture
def derp_example(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """Return the context of a server for derp.example and 127.0.0.1, and its roots."""
    certificate = self_signed("derp.example", "127.0.0.1")
    return server_context(certificate, tmp_path), tmp_path / "served.crt"


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("proxy_speaks", ["http", "https"])
async def test_tls_to_the_relay_goes_inside_the_tunnel_of_either_kind_of_proxy(
    monkeypatch: pytest.MonkeyPatch, derp_example: tuple[ssl.SSLContext, Path], proxy_speaks: str
) -> None:
    context, trusted = derp_example
    async with (
        fake_server(context) as server,
        proxy_to(server.port, context if proxy_speaks == "https" else None) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"{proxy_speaks}://127.0.0.1:{proxy.port}")
        region = DerpRegion(1, nodes=(DerpNode("1a", 1, "derp.example"),))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True, cafile=trusted
        ) as client:
            connecting = asyncio.create_task(client.connect())
            head, relay = await server.next_login()
            await connecting
            assert b"\r\nHost: derp.example\r\n" in head
            assert await client.recv() == ServerInfo()
            await client.send(client.public_key, b"through both")
            while (received := await relay.next_frame())[0] != FrameType.SEND_PACKET:
                pass
            assert received[1] == client.public_key.raw + b"through both"
        assert proxy.heads == [
            b"CONNECT derp.example:443 HTTP/1.1\r\nHost: derp.example:443\r\n\r\n"
        ]


@pytest.mark.usefixtures("no_proxies")
async def test_an_https_proxy_that_shows_another_names_certificate_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = server_context(self_signed("proxy.example"), tmp_path)
    async with proxy_to(0, context) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{proxy.port}")
        region = DerpRegion(1, nodes=(DerpNode("1a", 1, "derp.example"),))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True, cafile=tmp_path / "served.crt"
        ) as client:
            with pytest.raises(DialError, match="certificate"):
                await client.connect()
        assert proxy.heads == []


@pytest.mark.usefixtures("no_proxies")
async def test_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy_to(0) as proxy:
        proxy.answer = b"HTTP/1.1 403 Forbidden\x1b[2J\r\n\r\n"
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        async with region_client("2001:db8::1", 443) as client:
            with pytest.raises(
                DialError, match=r"proxy 127.0.0.1 refused a tunnel: .*403 Forbidden\\x1b"
            ):
                await client.connect()
        assert proxy.heads == [
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"
        ]


@pytest.mark.usefixtures("no_proxies")
async def test_host_that_would_break_the_proxys_request_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    async with region_client("derp.example\r\nX-Injected: 1", 443) as client:
        with pytest.raises(DialError, match="cannot request a tunnel to the host"):
            await client.connect()
    assert network.dialled == []


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("no_proxy", ["", "example"])
async def test_loopback_and_exempt_hosts_go_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, network: Network, no_proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    network.refused = {V4, V6, socket.AF_UNSPEC}
    host = "derp.example" if no_proxy else "127.0.0.1"
    async with region_client(host, 443, use_tls=True) as client:
        with pytest.raises(DialError):
            await client.connect()
    assert {host for host, _, _ in network.dialled} == {host}


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("socks5://127.0.0.1:1080", "proxy 127.0.0.1: only http:// and https://"),
        ("http://", "the proxy's URL has no host"),
        ("http://127.0.0.1:99999", "proxy 127.0.0.1: Port out of range"),
        ("http://me:secret@proxy.invalid:3128", r"^proxy proxy\.invalid:3128: "),
        ("http://me:secret@127.0.0.1:1", r"^proxy 127\.0\.0\.1:1: Connection refused$"),
    ],
)
async def test_unusable_proxies_are_dial_errors_that_name_the_proxy(
    url: str, complaint: str
) -> None:
    with pytest.raises(DialError, match=complaint) as caught:
        await dial.dial_through_proxy(urlsplit(url), "derp.example", 443, never_secured)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 70_000])
async def test_a_node_with_a_port_that_is_none_is_a_dial_error(port: int) -> None:
    with pytest.raises(DialError, match="port must be 0-65535"):
        await dial.dial_node(DerpNode("1a", 1, "127.0.0.1"), port)


async def test_urls_are_dialled_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    async with fake_server() as server:
        url = f"http://localhost.invalid:{server.port}/derp"
        client = HTTPClient(url, NodePrivate.generate(), dial_host="127.0.0.1")
        connecting = asyncio.create_task(client.connect())
        head, _ = await server.next_login()
        await connecting
        assert f"\r\nHost: localhost.invalid:{server.port}\r\n".encode() in head
        await client.close()
