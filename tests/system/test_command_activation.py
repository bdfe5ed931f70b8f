"""`fastderp-relay` on sockets that systemd has opened (socket activation)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePublic
from tests.kit.certificates import self_signed
from tests.kit.command import COMMAND, RunningRelay, started
from tests.kit.memory import SANITIZED
from tests.kit.peer import Peer
from tests.kit.ports import free_ports, is_served
from tests.kit.relay import Setup, client_context, eventually
from tests.kit.stun import is_answered

ACTIVATE = shutil.which("systemd-socket-activate")
with_systemd = pytest.mark.skipif(
    not ACTIVATE or SANITIZED,
    reason="systemd-socket-activate is not installed, or does not pass the sanitizer's variables",
)

# Puts descriptors at 3, 4, … and names this process, as systemd does before it starts a service.
LAUNCHER = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for index, fd in enumerate(fds):
    os.dup2(fd, 3 + index)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""


def activated(
    sockets: Sequence[socket.socket], names: str, *flags: str
) -> tuple[list[str], list[int]]:
    """Return the command of a relay that inherits sockets, and the descriptors to pass."""
    fds = [sock.fileno() for sock in sockets]
    for fd in fds:
        os.set_inheritable(fd, True)
    numbers = ",".join(map(str, fds))
    return [sys.executable, "-c", LAUNCHER, numbers, names, str(COMMAND), *flags], fds


def tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def log_in(running: RunningRelay, port: int, tls: bool = False) -> Peer:
    context = client_context(Setup("TLS 1.3")) if tls else None
    peer = Peer.connect("127.0.0.1", port, context, 20)
    peer.login(NodePublic.from_text(running.find(r"public key (\S+),")))
    return peer


def test_tls_plain_http_and_stun_are_served_on_inherited_sockets(tmp_path: Path) -> None:
    certificate = self_signed("127.0.0.1")
    (tmp_path / "127.0.0.1.key").write_bytes(certificate.key_pem)
    (tmp_path / "127.0.0.1.crt").write_bytes(ssl.DER_cert_to_PEM_cert(certificate.der).encode())
    flags = ("-certmode=manual", f"-certdir={tmp_path}", "-hostname=127.0.0.1")
    with tcp() as derp, tcp() as http, udp() as stun:
        command, fds = activated(
            (http, stun, derp), "http:stun:derp", *flags, "-a", ":0", "-c", str(tmp_path / "k")
        )
        with started(command, pass_fds=fds) as running:
            log_in(running, derp.getsockname()[1], tls=True).close()
            port = http.getsockname()[1]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as page:
                assert page.status == 200
            assert is_answered(*stun.getsockname())
            assert f"plain HTTP on 127.0.0.1:{port}" in running.said
            assert running.stop()[0] == 0


def test_a_socket_named_debug_has_the_debug_pages_and_the_others_have_none(tmp_path: Path) -> None:
    flags = ("-a", ":0", "-stun=false", "-c", str(tmp_path / "k"))
    path = str(tmp_path / "debug.sock")
    with tcp() as derp, tcp() as debug, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        command, fds = activated((debug, derp, unix), "debug:derp:debug", *flags)
        with started(command, pass_fds=fds) as running:
            [served, public] = (sock.getsockname()[1] for sock in (debug, derp))
            assert f"; debug on 127.0.0.1:{served}, unix:{path};" in running.said
            assert "not on loopback" not in running.said
            with urllib.request.urlopen(f"http://127.0.0.1:{served}/metrics", timeout=20) as page:
                assert b"derp_accepts" in page.read()
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{public}/debug/varz", timeout=20)
            log_in(running, public).close()
            assert running.stop()[0] == 0
            assert os.path.exists(path), "the socket is its owner's"


def test_clients_that_connect_while_the_relay_restarts_are_not_refused(tmp_path: Path) -> None:
    flags = ("-a", ":0", "-stun=false", "-c", str(tmp_path / "k"))
    with tcp() as derp:
        port = derp.getsockname()[1]
        command, fds = activated((derp,), "derp", *flags)
        with started(command, pass_fds=fds) as running:
            log_in(running, port).close()
            assert running.stop()[0] == 0
        waiting = Peer.connect("127.0.0.1", port, None, 20)
        with started(command, pass_fds=fds) as running:
            waiting.login(NodePublic.from_text(running.find(r"public key (\S+),")))
            waiting.close()


@with_systemd
@pytest.mark.parametrize("names", ["", "--fdname=derp:http"], ids=["by port", "by name"])
def test_systemd_hands_over_tcp_sockets(tmp_path: Path, names: str) -> None:
    certificate = self_signed("127.0.0.1")
    (tmp_path / "127.0.0.1.key").write_bytes(certificate.key_pem)
    (tmp_path / "127.0.0.1.crt").write_bytes(ssl.DER_cert_to_PEM_cert(certificate.der).encode())
    derp, http = free_ports(2)
    assert ACTIVATE is not None
    command = [
        *(ACTIVATE, "-l", f"127.0.0.1:{derp}", "-l", f"127.0.0.1:{http}", *names.split()),
        *(str(COMMAND), "-a", ":0", "-stun=false", "-c", str(tmp_path / "k")),
        *("-certmode=manual", f"-certdir={tmp_path}", "-hostname=127.0.0.1"),
        f"-http-port={http}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0)
    running = RunningRelay(process)
    try:
        eventually(lambda: is_served(derp))  # the first connection starts the relay
        running.hears("ready")
        log_in(running, derp, tls=True).close()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/healthz", timeout=20) as page:
            assert page.read() == b"ok\n"
        assert running.stop()[0] == 0
    finally:
        process.kill()
        process.communicate()


@with_systemd
def test_systemd_hands_over_a_udp_socket_of_both_families(tmp_path: Path) -> None:
    [port] = free_ports(1, socket.SOCK_DGRAM)
    assert ACTIVATE is not None
    command = [
        *(ACTIVATE, "-d", "-l", str(port), str(COMMAND)),
        *("-a", "127.0.0.1:0", "-http-port=-1", "-c", str(tmp_path / "k")),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0)
    running = RunningRelay(process)
    try:
        running.hears("Listening on")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.sendto(b"the first datagram starts the relay", ("127.0.0.1", port))
            running.hears("ready")
        assert is_answered("127.0.0.1", port)
        if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
            assert is_answered("::1", port)
        url = f"http://127.0.0.1:{running.port}/debug/vars"

        def is_counted() -> bool:
            with urllib.request.urlopen(url, timeout=20) as page:
                return bool(json.load(page)["stun"]["counter_addrfamily"]["ipv4"] == 1)

        eventually(is_counted)  # an answer is counted after it was sent
    finally:
        process.kill()
        process.communicate()


def test_sockets_for_another_process_are_not_taken(tmp_path: Path) -> None:
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / "k"))
    with started([str(COMMAND), *flags], env) as running:
        assert is_served(running.port)
        assert running.stop(signal.SIGINT)[0] == 0


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        (udp, "derp", "inherited descriptor 3 (derp) is not a listening TCP socket"),
        (tcp, "stun", "inherited descriptor 3 (stun) is not a UDP socket"),
        (socket.socket, "derp", "inherited descriptor 3 (derp) is not a listening TCP socket"),
    ],
)
def test_a_socket_that_does_not_fit_its_name_is_one_line(
    tmp_path: Path, kind: type[socket.socket], name: str, complaint: str
) -> None:
    with kind() as sock:
        command, fds = activated((sock,), name, "-a", ":0", "-c", str(tmp_path / "k"))
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, pass_fds=fds)
    assert done.returncode == 71
    assert done.stderr.startswith(f"fastderp-relay: {complaint}")
    assert done.stderr.count("\n") == 1
