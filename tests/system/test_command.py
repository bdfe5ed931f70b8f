"""`fastderp-relay` as a process: its start, its services, its end."""

import contextlib
import ctypes
import errno
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePrivate, NodePublic
from tests.kit.command import COMMAND, RunningRelay, manual, refused, relay
from tests.kit.peer import RESTARTING, Peer
from tests.kit.relay import eventually
from tests.kit.stun import is_answered

QUIET = ("-stun=false", "-http-port=-1")
# The number is the same on every machine; Python and older C libraries have no name for it.
PIDFD_GETFD = 438


def get(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=context) as response:
        text: str = response.read().decode()
        return text


def frames_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and payload of consecutive complete frames."""
    while data:
        frame_type, length = struct.unpack_from(">BI", data)
        yield frame_type, data[5 : 5 + length]
        data = data[5 + length :]


def test_a_first_start_makes_a_key_and_names_its_addresses(tmp_path: Path) -> None:
    key = tmp_path / "deep" / "relay.key"
    with relay("-a", "127.0.0.1:0", "-c", str(key), *QUIET) as running:
        public = running.find(r"public key (nodekey:[0-9a-f]{64}), kept in ")
        assert str(key) in running.said
        assert "DERP" in get(f"http://127.0.0.1:{running.port}/")
    private = json.loads(key.read_text())["PrivateKey"]
    assert NodePrivate.from_text(private).public_key.text == public
    assert key.stat().st_mode & 0o777 == 0o600
    assert private.partition(":")[2] not in running.said


def test_a_second_start_keeps_the_key(tmp_path: Path) -> None:
    publics = set()
    for _ in range(2):
        with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), *QUIET) as running:
            publics.add(running.find(r"public key (\S+),"))
    assert len(publics) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with relay("--a=127.0.0.1:0", f"--c={tmp_path / 'relay.key'}", *QUIET) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(b"GET /derp HTTP/1.1\r\nHost: x\r\n")
            code, said = running.stop(number)
    assert code == 0
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopping"


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, [RESTARTING]), (signal.SIGINT, [])])
def test_a_restart_without_a_drain_tells_clients_when_to_come_back(
    tmp_path: Path, number: signal.Signals, told: list[int]
) -> None:
    with (
        relay(
            *("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), "-drain-time=0"), *QUIET
        ) as running,
        contextlib.ExitStack() as stack,
    ):
        public = NodePublic.from_text(running.find(r"public key (\S+),"))
        peers = [
            stack.enter_context(Peer.connect("127.0.0.1", running.port, None, 10)) for _ in range(8)
        ]
        for peer in peers:
            peer.login(public)
        running.process.send_signal(number)
        waits_ms = set()
        for peer in peers:
            heard = list(frames_of(peer.read_to_end()))
            assert [frame_type for frame_type, _ in heard] == told
            waits_ms |= {struct.unpack(">II", payload) for _, payload in heard}
        assert running.process.wait(20) == 0
    assert all(
        reconnect_in_ms <= 2000 and try_for_ms == 5000 for reconnect_in_ms, try_for_ms in waits_ms
    )
    assert bool(waits_ms) == (len(waits_ms) > 1)


def test_every_address_is_served_in_both_families(tmp_path: Path) -> None:
    with relay("-a", ":0", "-c", str(tmp_path / "relay.key"), *QUIET) as running:
        assert get(f"http://127.0.0.1:{running.port}/derp/probe") == ""
        if socket.has_ipv6 and "[::]" in running.said:
            assert get(f"http://[::1]:{running.port}/derp/probe") == ""


def test_a_home_page_may_be_blank(tmp_path: Path) -> None:
    with relay(
        "-a", "127.0.0.1:0", "-home", "blank", "-c", str(tmp_path / "relay.key"), *QUIET
    ) as running:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/", timeout=10) as response:
            assert (response.status, response.headers["Content-Type"]) == (
                200,
                "text/html; charset=utf-8",
            )
            assert response.read() == b""


def test_a_home_page_may_redirect(tmp_path: Path) -> None:
    elsewhere = "https://example.com/about?relay"
    with relay(
        "-a", "127.0.0.1:0", "-home", elsewhere, "-c", str(tmp_path / "relay.key"), *QUIET
    ) as running:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        ) as visitor:
            visitor.request("GET", "/")
            response = visitor.getresponse()
            assert (response.status, response.headers["Location"]) == (302, elsewhere)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ((), (1, 600, 15_000)),
        (("-tcp-keepalive-time=77s", "-tcp-user-timeout=2500ms"), (1, 77, 2500)),
    ],
    ids=["by default", "by flags"],
)
def test_a_clients_socket_times_out_by_the_flags(
    tmp_path: Path, flags: tuple[str, ...], settings: tuple[int, ...]
) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), *QUIET, *flags) as running:
        client = Peer.connect("127.0.0.1", running.port, None, 10)
        with client, client_socket(running, client.sock.getsockname()) as accepted:
            assert settings == (
                accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            )


def client_socket(running: RunningRelay, client: tuple[str, int]) -> socket.socket:
    """Wait for the relay's socket to this client; return a duplicate of it."""
    found: list[socket.socket] = []

    def is_found() -> bool:
        for sock in sockets_of(running.process.pid):
            if is_to(sock, client):
                found.append(sock)
                return True
            sock.close()
        return False

    eventually(is_found)
    return found[0]


def is_to(sock: socket.socket, client: tuple[str, int]) -> bool:
    try:
        return sock.family == socket.AF_INET and bool(sock.getpeername() == client)
    except OSError:  # a listener
        return False


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Yield duplicates of a child's sockets."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
                if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                    continue
            duplicate = libc.syscall(PIDFD_GETFD, process, int(number), 0)
            if duplicate < 0 and ctypes.get_errno() == errno.EBADF:
                continue
            if duplicate < 0:
                pytest.skip(
                    f"no look at the descriptors of a child: {os.strerror(ctypes.get_errno())}"
                )
            yield socket.socket(fileno=duplicate)
    finally:
        os.close(process)


def test_stun_is_answered_and_counted(tmp_path: Path) -> None:
    with relay(
        "-a", "127.0.0.1:0", "-stun-port", "0", "-c", str(tmp_path / "relay.key")
    ) as running:
        assert is_answered("127.0.0.1", running.stun_port)

        def is_counted() -> bool:
            varz = running.varz()
            return (
                'stun_requests{disposition="success"} 1\n' in varz
                and 'stun_addrfamily{family="ipv4"} 1\n' in varz
            )

        eventually(is_counted)  # an answer is counted after it was sent


def test_the_counters_have_derpers_names(tmp_path: Path) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), *QUIET) as running:
        varz = running.varz()
        tree = json.loads(get(f"http://127.0.0.1:{running.port}/debug/vars"))
        assert (
            get(f"http://127.0.0.1:{running.port}/debug/check")
            == "derp.Server ConsistencyCheck okay"
        )
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"^(\w+)", varz, re.M)}
    untyped = [name for name in names if f"# HELP {name} " not in varz]
    assert not untyped, "not in the table of metrics"
    for name in (
        "derp_accepts",
        "derp_current_connections",
        "derp_packets_received",
        "derp_bytes_sent",
        "derp_got_ping",
    ):
        assert re.search(rf"^{name} 0$", varz, re.M), name
    assert varz.count("\nderp_packets_dropped{") == 14
    assert tree["derp"]["gauge_current_connections"] == 0


def test_bootstrap_dns_without_names_gives_an_empty_answer_and_counts_it(tmp_path: Path) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), "-derp=false", *QUIET) as running:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{running.port}/bootstrap-dns?q=a.example.com"
        ) as answer:
            assert (answer.read(), answer.headers["Content-Type"]) == (b"", "application/json")
            assert answer.headers["Connection"] == "close"
        varz = running.varz()
    assert "# TYPE bootstrap_dns_requests counter\n" in varz
    assert re.search(r"^bootstrap_dns_requests 1$", varz, re.MULTILINE)
    assert re.search(r"^bootstrap_dns_unpublished_misses 1$", varz, re.MULTILINE)


def test_an_address_gets_a_certificate_and_prints_its_node(tmp_path: Path) -> None:
    flags = (*manual(tmp_path / "certs", "127.0.0.1"), "-c", str(tmp_path / "relay.key"))
    with relay("-a", "127.0.0.1:0", "-stun=false", "-http-port", "0", *flags) as running:
        node = json.loads(running.find(r"(\{.*\})"))
        trusting = ssl.create_default_context(cafile=str(tmp_path / "certs" / "127.0.0.1.crt"))
        assert "DERP" in get(f"https://127.0.0.1:{running.port}/", trusting)
        leaf = ssl.PEM_cert_to_DER_cert((tmp_path / "certs" / "127.0.0.1.crt").read_text())
        assert "fastderp_certificate_expiry_unix_time" in get(
            f"https://127.0.0.1:{running.port}/debug/varz", trusting
        )
    assert node == {
        "Name": "custom", "RegionID": 900, "HostName": "127.0.0.1",
        "DERPPort": running.port, "STUNPort": -1,
        "CertName": "sha256-raw:" + hashlib.sha256(leaf).hexdigest(),
    }  # fmt: skip


def test_the_plain_port_beside_https_answers_captive_portal_checks_only(tmp_path: Path) -> None:
    flags = (*manual(tmp_path, "127.0.0.1"), "-c", str(tmp_path / "relay.key"))
    with relay("-a", "127.0.0.1:0", "-stun=false", "-http-port", "0", *flags) as running:
        plain = int(running.find(r"plain HTTP on \S+:(\d+)"))
        assert get(f"http://127.0.0.1:{plain}/generate_204") == ""
        with socket.create_connection(("127.0.0.1", plain), timeout=10) as client:
            client.sendall(
                b"GET /derp HTTP/1.1\r\nHost: relay.example\r\n"
                b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 302 ")


def test_a_relay_with_derp_off_refuses_logins_and_logs_that(tmp_path: Path) -> None:
    with relay(
        "-a", "127.0.0.1:0", "-derp=false", "-c", str(tmp_path / "relay.key"), *QUIET
    ) as running:
        assert get(f"http://127.0.0.1:{running.port}/generate_204") == ""
        request = urllib.request.Request(
            f"http://127.0.0.1:{running.port}/derp", headers={"Upgrade": "DERP"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 404
        assert "not relayed" in running.said


def test_the_version_is_printed() -> None:
    version = r"fastderp-relay \d+\.\d+\.\d+\ncrypto (OpenSSL|AWS-LC) \S+ \(.+\)\n"
    assert re.fullmatch(version, refused("--version")[1])


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help_lists_every_flag_and_every_exit_code(flag: str) -> None:
    code, text = refused(flag)
    assert code == 0
    for word in (
        "-a [HOST]:PORT",
        "-certmode",
        "-workers",
        "-tcp-write-timeout",
        "-mesh-with",
        "Exit codes",
        "78",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "flags",
    [
        ("-hostname", "relay.example"),
        ("-certdir", "certs", "-acme-email", "a@b.example"),
        ("-certmode", "gcp"),
    ],
)
def test_certificate_flags_without_effect_are_named(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET, *flags) as running:
        named = ", ".join(flag for flag in flags if flag.startswith("-"))
        assert (
            f"the relay serves plain HTTP, and {named} has no effect: "
            "certificates from a CA are for port 443; -acme-directory" in running.said
        )


def test_the_start_names_the_admission_rules(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(
        f"{NodePrivate.generate().public_key.text}\n{NodePrivate.generate().public_key.text}\n"
    )
    empty = tmp_path / "empty"
    empty.write_text("# none\n")
    start = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    with relay(*start) as running:
        assert "\nadmission: every client\n" in running.said
    lists = ("-allow-keys", str(keys), "-deny-keys", str(empty))
    with relay(*start, *lists, "-verify-client-url=https://u:p@a.example/s") as running:
        said = running.find(r"\nadmission: (.*)\n")
        assert (
            said == "2 keys allowed, 0 keys denied; https://a.example"
            " (all clients are admitted while it cannot be reached)"
        )
    with relay(*start, "-verify-clients", "-socket", "/nowhere") as running:
        assert "\nadmission: tailscaled at /nowhere\n" in running.said


def test_the_descriptor_limit_is_raised_as_far_as_allowed(tmp_path: Path) -> None:
    script = f'ulimit -S -n 64; exec "{COMMAND}" -a 127.0.0.1:0 -c {tmp_path / "k"} -stun=false'
    process = subprocess.Popen(["bash", "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        process.stderr.readline()
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        process.kill()
        process.communicate()
    soft, hard = re.findall(r"^Max open files\s+(\d+)\s+(\d+)", limits, re.M)[0]
    assert soft == hard


def test_world_readable_secrets_are_named(tmp_path: Path) -> None:
    secret, key = tmp_path / "mesh.key", tmp_path / "relay.key"
    secret.write_text("ab" * 32)
    secret.chmod(0o644)
    flags = (*manual(tmp_path, "127.0.0.1"), "-mesh-psk-file", str(secret))
    with relay("-a", "127.0.0.1:0", "-c", str(key), *QUIET, *flags) as running:
        assert re.findall(
            r"(\S+) is a secret, but readable by every user of this machine: chmod 600 it",
            running.said,
        ) == [str(secret)]
    for path in (secret, key, tmp_path / "127.0.0.1.key"):
        path.chmod(0o640 if path == secret else 0o604)
    with relay("-a", "127.0.0.1:0", "-c", str(key), *QUIET, *flags) as running:
        assert re.findall(r"(\S+) is a secret", running.said) == [
            str(key),
            str(tmp_path / "127.0.0.1.key"),
        ]


def test_worker_threads_have_priority_over_the_login_thread(tmp_path: Path) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "key"), "--workers=2", *QUIET) as running:
        pid = running.process.pid
        niceness = {}
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                niceness[thread] = os.getpriority(os.PRIO_PROCESS, thread)
    assert niceness.pop(pid) == min(19, ours + 10)
    assert list(niceness.values()).count(ours) >= 2


def test_threads_have_their_own_names_in_top_and_perf(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "key"), "--workers=1", "--stun-port=0")
    with relay(*flags, "--http-port=-1") as running:
        pid = running.process.pid
        eventually(lambda: {"fastderp-worker", "fastderp-stun"} <= thread_names(pid))


def thread_names(pid: int) -> set[str]:
    names = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.add((task / "comm").read_text().strip())
    return names
