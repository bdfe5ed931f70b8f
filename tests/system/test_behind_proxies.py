"""`fastderp-relay` behind nginx, HAProxy and Caddy, as the operators' guide configures them.

The client's own address is in the log, in PeerPresent and in the admission request, and chooses
its limits, whatever the client claims. Clients come from 127.0.0.2; the proxies, at 127.0.0.1, are trusted.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastderp.util.net import address_text
from fastderp.wire.keys import NodePublic
from tests.kit.command import RunningRelay, relay
from tests.kit.peer import KEEP_ALIVE, MAGIC, PRESENT, SERVER_KEY, WATCH, Peer, client_info
from tests.kit.ports import free_ports
from tests.kit.proxies import NGINX_STREAM, ProxyFiles, sample
from tests.kit.service import Service, ok, serving
from tests.kit.websocket import WebSocketPeer, opening_request

CLIENT = "127.0.0.2"
MESH_KEY = "ab" * 32
FORGED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Real-IP": "6.6.6.6",
    "Forwarded": "for=6.6.6.6",
}
PROXIED = "-proxy-protocol"
# Limits that hold for the clients' own address, and the ServerInfo that announces them.
LIMITS = {
    "Classes": [
        {
            "CIDRs": [f"{CLIENT}/32"],
            "PerClientRateLimitBytesPerSec": 1_000_000_000,
            "PerClientRateBurstBytes": 111_111,
        }
    ]
}
LIMITED = b'{"version":2,"TokenBucketBytesPerSecond":1000000000,"TokenBucketBytesBurst":111111}'
# relay -> its flags
BACKENDS = {
    "HTTP": ("-path-prefix=/relay",),
    "HTTPS": ("-certmode=manual",),
    "TCP": (PROXIED,),
    "TLS": (PROXIED, "-certmode=manual"),
}
# route -> the relay behind it
NGINX = {"nginx, HTTP": "HTTP", "nginx, HTTPS inside": "HTTPS"}
NGINX_TCP = {"nginx, PROXY v1": "TLS", "nginx, TLS ended, PROXY v1": "TCP"}
HAPROXY = {
    "HAProxy, HTTP": "HTTP",
    "HAProxy, HTTPS inside": "HTTPS",
    "HAProxy, PROXY v1": "TLS",
    "HAProxy, PROXY v2": "TLS",
    "HAProxy, PROXY v2 with TLVs": "TLS",
    "HAProxy, TLS ended, PROXY v1": "TCP",
    "HAProxy, TLS ended, PROXY v2 with TLVs": "TCP",
}
CADDY = {"Caddy, HTTP": "HTTP", "Caddy, HTTPS inside": "HTTPS"}
WAYS = {**NGINX, **NGINX_TCP, **HAPROXY, **CADDY}


@dataclass
class Backend:
    """A running relay, its admission service, and a watcher."""

    running: RunningRelay
    service: Service
    is_tls: bool
    watcher: Peer

    @property
    def public(self) -> NodePublic:
        return public_key(self.running)

    def connect(self) -> Peer:
        """Connect without a proxy."""
        return dial(Peer, self.running.port, tls=self.is_tls)

    def address_in_presence(self, key: NodePublic) -> tuple[str, int]:
        """Return the watcher's PeerPresent of a client."""
        while True:
            kind, payload = self.watcher.read_frame()
            if kind == PRESENT and payload[:32] == key.raw:
                return address_text(payload[32:48]), int.from_bytes(payload[48:50])

    def source_in_question(self, key: NodePublic) -> str:
        """Return the address in the admission request."""
        [source] = [
            question["Source"]
            for question in self.service.questions()
            if question["NodePublic"] == key.text
        ]
        return str(source)

    def line_of(self, text: str) -> str:
        """Return the next log line with this text."""
        return log_line(self.running, text)


def log_line(running: RunningRelay, text: str) -> str:
    """Return the next log line with this text."""
    stderr = running.process.stderr
    assert stderr is not None
    while select.select([stderr], [], [], 20)[0]:
        line = stderr.readline().decode()
        if text in line:
            return line
    raise AssertionError(f"no log line with {text}")


def public_key(running: RunningRelay) -> NodePublic:
    return running.public_key


def dial(kind: type[Peer], port: int, *, tls: bool, source: str = CLIENT) -> Peer:
    sock = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
    return kind(sock)


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    directory = tmp_path_factory.mktemp("relays")
    secret = directory / "mesh.key"
    secret.write_text(MESH_KEY)
    secret.chmod(0o600)
    rates = directory / "rates.json"
    rates.write_text(json.dumps(LIMITS))
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(serving(ok({"Allow": True})))
        found = {}
        for name, flags in BACKENDS.items():
            running = stack.enter_context(
                relay(
                    *("-a=127.0.0.1:0", "-stun=false", "-http-port=-1", "-hostname=127.0.0.1"),
                    *("-c", str(directory / f"{name}.key"), f"-certdir={directory}"),
                    *(f"-verify-client-url={service.url}", f"-mesh-psk-file={secret}"),
                    f"-rate-config={rates}",
                    *("-trusted-proxies=127.0.0.1", *flags),
                )
            )
            is_tls = "-certmode=manual" in flags
            watcher = stack.enter_context(dial(Peer, running.port, tls=is_tls))
            json_text = json.dumps({"version": 2, "CanAckPings": True, "meshKey": MESH_KEY})
            watcher.login(public_key(running), json=json_text.encode())
            watcher.send_frame(WATCH)
            found[name] = Backend(running, service, is_tls, watcher)
        yield found


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ProxyFiles:
    return ProxyFiles(tmp_path_factory.mktemp("proxies"))


@pytest.fixture(scope="session")
def nginx(backends: dict[str, Backend], files: ProxyFiles) -> Iterator[dict[str, int]]:
    has_stream = NGINX_STREAM.exists()
    names = [*NGINX, *(NGINX_TCP if has_stream else ())]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    certificate = {"/etc/ssl/derp.crt": str(files.chain), "/etc/ssl/derp.key": str(files.key)}
    http = ""
    for name, backend in NGINX.items():
        scheme = "https" if backend == "HTTPS" else "http"
        changes = {
            "listen 443": f"listen 127.0.0.1:{ports[name]}",
            "http://127.0.0.1:3340": f"{scheme}://127.0.0.1:{backends[backend].running.port}",
        }
        http += sample("nginx, HTTP", {**certificate, **changes})
    stream = ""
    if has_stream:
        passed, ended = NGINX_TCP
        text = sample(
            "nginx, TCP",
            {
                "listen 443": f"listen 127.0.0.1:{ports[passed]}",
                ":8443": f":{backends['TLS'].running.port}",
            },
        )
        stream = (
            text.rstrip().removesuffix("}")
            + f"""
            server {{
                listen 127.0.0.1:{ports[ended]} ssl;
                ssl_certificate {files.chain};
                ssl_certificate_key {files.key};
                proxy_pass 127.0.0.1:{backends["TCP"].running.port};
                proxy_protocol on;
            }}
        }}
        """
        )
    with files.nginx(http, stream, list(ports.values())):
        yield ports


@pytest.fixture(scope="session")
def haproxy(backends: dict[str, Backend], files: ProxyFiles) -> Iterator[dict[str, int]]:
    ports = dict(zip(HAPROXY, free_ports(len(HAPROXY)), strict=True))
    text = ""
    for number, (name, backend) in enumerate(HAPROXY.items()):
        running = backends[backend].running
        bind = f"bind 127.0.0.1:{ports[name]}"
        if backend.startswith("HTTP"):
            inside = " ssl verify none" if backend == "HTTPS" else ""
            changes = {
                "bind :443": bind,
                "/etc/ssl/derp.pem": str(files.both),
                "127.0.0.1:3340": f"127.0.0.1:{running.port}{inside}",
            }
            section = sample("HAProxy, HTTP", changes)
        else:
            ended = f" ssl crt {files.both}" if backend == "TCP" else ""
            header = "send-proxy" if "v1" in name else "send-proxy-v2"
            if "TLVs" in name:
                header += " proxy-v2-options ssl,cert-cn,crc32c,authority"
            changes = {
                "bind :443": bind + ended,
                "send-proxy-v2": header,
                "127.0.0.1:8443": f"127.0.0.1:{running.port}",
            }
            section = sample("HAProxy, TCP", changes)
        text += section.replace(" derp", f" derp{number}") + "\n"
    with files.haproxy(text, list(ports.values())):
        yield ports


@pytest.fixture(scope="session")
def caddy(backends: dict[str, Backend], files: ProxyFiles) -> Iterator[dict[str, int]]:
    ports = dict(zip(CADDY, free_ports(len(CADDY)), strict=True))
    text = ""
    for name, backend in CADDY.items():
        upstream = f"127.0.0.1:{backends[backend].running.port}"
        if backend == "HTTPS":
            upstream = f"https://{upstream} {{\ntransport http {{\ntls_insecure_skip_verify\n}}\n}}"
        changes = {
            "derp.example.com {": f"https://:{ports[name]} {{\n"
            f"bind 127.0.0.1\ntls {files.chain} {files.key}",
            "127.0.0.1:3340": upstream,
        }
        text += sample("Caddy", changes)
    with files.caddy(text, list(ports.values())):
        yield ports


@pytest.fixture
def way(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Run the proxy of a route; return the route's name and port."""
    ports = request.getfixturevalue(request.param.split(",")[0].lower())
    if request.param not in ports:
        pytest.skip("nginx has no stream module (libnginx-mod-stream)")
    return request.param, ports[request.param]


def log_in(peer: Peer, relay_key: NodePublic) -> None:
    """Log in with a request that claims to be forwarded."""
    if isinstance(peer, WebSocketPeer):
        peer.open(opening_request(**FORGED))
        assert peer.read_frame() == (SERVER_KEY, MAGIC + relay_key.raw)
    else:
        peer.upgrade(relay_key, [f"{name}: {value}" for name, value in FORGED.items()])
    peer.send(client_info(peer.key, relay_key))
    peer.read_server_info(relay_key, LIMITED)


@pytest.mark.parametrize("kind", [Peer, WebSocketPeer], ids=["raw", "WebSocket"])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_packets_flow_and_the_address_is_the_clients_own(
    way: tuple[str, int], kind: type[Peer], backends: dict[str, Backend]
) -> None:
    name, port = way
    backend = backends[WAYS[name]]
    with dial(kind, port, tls=True) as client, backend.connect() as other:
        own_port = client.sock.getsockname()[1] if "PROXY" in name else 0
        log_in(client, backend.public)
        other.login(backend.public, server_info=LIMITED)
        client.send_packet(other.public, b"there")
        assert other.read_packet() == (client.public, b"there")
        other.send_packet(client.public, b"and back")
        assert client.read_packet() == (other.public, b"and back")
        assert backend.address_in_presence(client.public) == (CLIENT, own_port)
        assert backend.source_in_question(client.public) == CLIENT
    assert f" {CLIENT}:{own_port}: closed after " in backend.line_of(client.public.short)


def test_forwarding_headers_of_an_untrusted_peer_are_ignored(backends: dict[str, Backend]) -> None:
    backend = backends["HTTP"]
    with backend.connect() as client:
        log_in(client, backend.public)
        own = client.sock.getsockname()
        assert backend.address_in_presence(client.public) == own
        assert backend.source_in_question(client.public) == CLIENT


@pytest.mark.parametrize("name", ["TCP", "TLS"])
def test_an_untrusted_peer_that_sends_a_proxy_header_is_closed(
    name: str, backends: dict[str, Backend]
) -> None:
    backend = backends[name]
    with dial(Peer, backend.running.port, tls=False) as stranger:
        stranger.send(b"PROXY TCP4 127.0.0.9 127.0.0.1 1 2\r\nGET /debug/ HTTP/1.0\r\n\r\n")
        assert stranger.is_closed()
    line = backend.line_of("refused at proxy")
    assert f" {CLIENT}:" in line and "-trusted-proxies does not list it" in line


def get(url: str) -> tuple[int, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=20, context=context) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    "way", ["nginx, HTTP", "HAProxy, HTTP", "Caddy, HTTP", "HAProxy, PROXY v2"], indirect=True
)
def test_a_request_through_a_proxy_is_never_local(way: tuple[str, int]) -> None:
    assert get(f"https://127.0.0.1:{way[1]}/debug/varz")[0] == 403
    assert get(f"https://127.0.0.1:{way[1]}/derp/probe")[0] == 200


@pytest.mark.parametrize("way", ["nginx, HTTP", "HAProxy, HTTP", "Caddy, HTTP"], indirect=True)
def test_every_path_is_also_served_below_the_prefix(
    way: tuple[str, int], backends: dict[str, Backend], tmp_path: Path
) -> None:
    base = f"https://127.0.0.1:{way[1]}/relay"
    assert get(f"{base}/derp/probe")[0] == 200
    assert get(f"{base}/generate_204")[0] == 204
    status, page = get(f"{base}/")
    assert status == 200 and "href=/relay/derp.css" in page
    assert get(f"{base}/derp.css")[0] == 200
    assert get(f"{base}y/derp/probe")[1].startswith("<!doctype html>")


def test_a_proxy_on_a_unix_socket_is_trusted_when_unix_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    base = (f"-a=unix:{path}", "-stun=false", "-http-port=-1", "-c", str(tmp_path / "key"))
    # The first relay is killed at the end of its block; the next one replaces its socket.
    for trusted, shown in (("unix", "203.0.113.7:0"), ("", ":0")):
        with relay(*base, f"-trusted-proxies={trusted}") as running:
            assert f"serves http on unix:{path};" in running.said
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(20)
            sock.connect(str(path))
            with Peer(sock) as client:
                client.login(public_key(running), headers=["X-Forwarded-For: 203.0.113.7"])
            line = log_line(running, client.public.short)
            assert f"{shown}: closed after" in line and ("203.0.113.7" in line) is bool(trusted)
    with relay(*base, "-trusted-proxies=unix") as running:
        assert running.stop()[0] == 0 and not path.exists()


def test_a_relay_that_ends_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path, new = tmp_path / "relay.sock", tmp_path / "new.sock"
    flags = ("-stun=false", "-trusted-proxies=unix", "-c", str(tmp_path / "key"))
    with relay(f"-a=unix:{path}", *flags) as previous, relay(f"-a=unix:{new}", *flags) as running:
        new.replace(path)
        assert previous.stop()[0] == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
        assert running.stop()[0] == 0
    with relay(f"-a=unix:{path}", *flags) as next_start:
        assert f"serves http on unix:{path};" in next_start.said


@pytest.mark.slow
def test_idle_clients_survive_the_proxies_time_out_of_60_s(
    request: pytest.FixtureRequest, backends: dict[str, Backend]
) -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        for name in ("nginx, HTTP", "HAProxy, HTTP", "HAProxy, PROXY v2", "Caddy, HTTP"):
            port = request.getfixturevalue(name.split(",")[0].lower())[name]
            for kind in (Peer, WebSocketPeer):
                client = stack.enter_context(dial(kind, port, tls=True))
                log_in(client, backends[WAYS[name]].public)
                client.sock.settimeout(90)
                clients.append(client)
        for client in clients:
            assert client.read_frames(2) == [(KEEP_ALIVE, b"")] * 2
            assert client.sync() == []
