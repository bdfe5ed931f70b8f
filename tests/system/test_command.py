"""`fastderp-relay` from outside: how it starts, what it serves, how it ends, and what it says when it cannot."""

import contextlib
import ctypes
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

from fastderp.client.stun import binding_request, parse_response
from fastderp.wire.keys import NodePrivate, NodePublic
from tests.kit.command import COMMAND, RunningRelay, refused, relay
from tests.kit.peer import RESTARTING, Peer
from tests.kit.relay import eventually

QUIET = ("-stun=false", "-http-port=-1")
PIDFD_GETFD = (
    438  # the same on every machine; neither Python nor older C libraries have a name for it
)


def get(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=context) as response:
        text: str = response.read().decode()
        return text


def frames_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of whole frames that follow each other."""
    while data:
        frame_type, length = struct.unpack_from(">BI", data)
        yield frame_type, data[5 : 5 + length]
        data = data[5 + length :]


def test_a_first_start_makes_a_key_and_says_where_it_serves(tmp_path: Path) -> None:
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
def test_a_restart_tells_clients_when_to_come_back(
    tmp_path: Path, number: signal.Signals, told: list[int]
) -> None:
    with (
        relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), *QUIET) as running,
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


def test_a_home_page_may_be_elsewhere(tmp_path: Path) -> None:
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
def test_a_clients_socket_gives_up_when_the_flags_say(
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
    """Return a duplicate of the socket that the relay has to this client, as soon as it has one."""
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
    """Go through duplicates of a child's sockets."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                continue
            duplicate = libc.syscall(PIDFD_GETFD, process, int(number), 0)
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
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(("127.0.0.1", running.stun_port))
            asked = os.urandom(12)
            client.send(binding_request(asked))
            assert parse_response(client.recv(100)) == (asked, *client.getsockname())
        varz = get(f"http://127.0.0.1:{running.port}/debug/varz")
        assert 'stun_requests{disposition="success"} 1\n' in varz
        assert 'stun_addrfamily{family="ipv4"} 1\n' in varz


def test_the_counters_are_there_under_derpers_names(tmp_path: Path) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.key"), *QUIET) as running:
        varz = get(f"http://127.0.0.1:{running.port}/debug/varz")
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


def test_bootstrap_dns_without_names_is_an_empty_answer_that_is_counted(tmp_path: Path) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), "-derp=false", *QUIET) as running:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{running.port}/bootstrap-dns?q=a.example.com"
        ) as answer:
            assert (answer.read(), answer.headers["Content-Type"]) == (b"", "application/json")
            assert answer.headers["Connection"] == "close"
        varz = get(f"http://127.0.0.1:{running.port}/debug/varz")
    assert "# TYPE bootstrap_dns_requests counter\n" in varz
    assert re.search(r"^bootstrap_dns_requests 1$", varz, re.MULTILINE)
    assert re.search(r"^bootstrap_dns_unpublished_misses 1$", varz, re.MULTILINE)


def test_an_address_gets_a_certificate_and_prints_its_node(tmp_path: Path) -> None:
    flags = (
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path / "certs"),
        "-hostname",
        "127.0.0.1",
        "-c",
        str(tmp_path / "relay.key"),
    )
    with relay("-a", "127.0.0.1:0", "-stun=false", "-http-port", "0", *flags) as running:
        node = json.loads(running.find(r"(\{.*\})"))
        trusting = ssl.create_default_context(cafile=str(tmp_path / "certs" / "127.0.0.1.crt"))
        assert "DERP" in get(f"https://127.0.0.1:{running.port}/", trusting)
        leaf = ssl.PEM_cert_to_DER_cert((tmp_path / "certs" / "127.0.0.1.crt").read_text())
        assert "fastderp_certificate_expiry_unix_time" in get(
            f"https://127.0.0.1:{running.port}/debug/varz", trusting
        )
    assert node == {
        "Name": "custom", "RegionID": 900, "HostName": "127.0.0.1", "DERPPort": running.port, "STUNPort": -1,
        "CertName": "sha256-raw:" + hashlib.sha256(leaf).hexdigest(),
    }  # fmt: skip


def test_the_plain_port_beside_https_answers_captive_portal_checks_only(tmp_path: Path) -> None:
    flags = (
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path),
        "-hostname",
        "127.0.0.1",
        "-c",
        str(tmp_path / "relay.key"),
    )
    with relay("-a", "127.0.0.1:0", "-stun=false", "-http-port", "0", *flags) as running:
        plain = int(running.find(r"plain HTTP on \S+:(\d+)"))
        assert get(f"http://127.0.0.1:{plain}/generate_204") == ""
        with socket.create_connection(("127.0.0.1", plain), timeout=10) as client:
            client.sendall(
                b"GET /derp HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 302 ")


def test_a_decommissioned_relay_refuses_to_relay_and_says_so(tmp_path: Path) -> None:
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
    assert re.fullmatch(r"fastderp-relay \d+\.\d+\.\d+\n", refused("--version")[1])


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


def one_line(
    flags: tuple[str, ...], exit_code: int, message: str, env: dict[str, str] | None = None
) -> None:
    """Expect the command to refuse: that exit code, one line, that message, no traceback."""
    code, text = refused(*flags, env=env)
    assert re.search(message, text), text
    assert code == exit_code, text
    assert text.count("\n") == 1, text
    assert text.startswith("fastderp-relay: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-stunport", "1"), "unknown flag -stunport; did you mean -stun-port"),
        (("-workers", "many"), 'invalid value "many" for -workers'),
        (("-stun", "false"), "-stun=false"),
        (("-a", "127.0.0.1", "-c", "k"), 'invalid address "127.0.0.1" for -a: missing port'),
        (("-a", "127.0.0.1:", "-c", "k"), 'invalid address "127.0.0.1:" for -a: missing port'),
        (
            ("-a", ":443", "-c", "k", "-certmode", "none"),
            'unknown -certmode "none": use manual, letsencrypt, gcp',
        ),
        (("-dev", "-home", "gopher://x"), "unknown -home value"),
        (
            ("-dev", "-stun=false", "-bootstrap-dns-names=a.example.com,b c"),
            '-bootstrap-dns-names "b c": want a host name',
        ),
        (
            ("-dev", "-stun=false", "-unpublished-bootstrap-dns-names=a/b/c"),
            '-unpublished-bootstrap-dns-names "a/b/c": want a host name',
        ),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags: tuple[str, ...], message: str) -> None:
    one_line(flags, 2, message)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "{",
        '{"PrivateKey":"privkey:00"}',
        '{"PrivateKey":7}',
        "[1]",
        "\x00",
        '{"PrivateKey":"privkey:' + "g" * 64 + '"}',
    ],
)
def test_a_malformed_key_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    key = tmp_path / "relay.key"
    key.write_text(content)
    one_line(("-a", "127.0.0.1:0", "-c", str(key), *QUIET), 78, re.escape(str(key)))
    assert key.read_text() == content


def test_a_key_path_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    one_line(("-a", "127.0.0.1:0", "-c", str(tmp_path), *QUIET), 78, re.escape(str(tmp_path)))


@pytest.mark.parametrize("flag", ["-c", "-mesh-psk-file", "-mesh-with", "-rate-config"])
def test_a_file_that_would_never_end_or_never_begin_is_refused(tmp_path: Path, flag: str) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(bytes(2 << 20))
    for path, reason in (
        (pipe, "not a regular file"),
        (Path("/dev/full"), "not a regular file"),
        (large, "larger than 1 MiB"),
    ):
        value = f"@{path}" if flag == "-mesh-with" else str(path)
        flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET, flag, value)
        one_line(flags, 78, rf"{re.escape(str(path))}: (cannot read it: )?{reason}$")


def test_certificate_files_that_never_begin_are_refused(tmp_path: Path) -> None:
    for ending in ("crt", "key"):
        os.mkfifo(tmp_path / f"relay.example.{ending}")
    flags = (
        "-a",
        "127.0.0.1:0",
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path),
        "-c",
        str(tmp_path / "k"),
        *QUIET,
    )
    one_line((*flags, "-hostname", "relay.example"), 78, r"relay\.example\.crt: not a regular file")


def test_a_key_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_line(
        ("-a", "127.0.0.1:0", "-c", str(tmp_path / "file" / "relay.key"), *QUIET),
        78,
        "relay.key|file",
    )


def test_an_unreadable_key_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "relay.key"
    key.write_text("{}")
    key.chmod(0)
    if os.access(key, os.R_OK):
        pytest.skip("this user reads every file")
    one_line(("-a", "127.0.0.1:0", "-c", str(key), *QUIET), 78, "Permission denied")


def test_a_privileged_port_is_refused_with_a_hint(tmp_path: Path) -> None:
    with contextlib.suppress(PermissionError), socket.create_server(("127.0.0.1", 1)):
        pytest.skip("this user binds every port")
    message = "127.0.0.1:1.*Permission denied.*CAP_NET_BIND_SERVICE"
    one_line(("-a", "127.0.0.1:1", "-c", str(tmp_path / "k"), *QUIET), 71, message)


def test_a_secrets_server_that_is_no_url_is_refused_without_quoting_it(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    one_line(
        (*flags, "-secrets-url=user:password@setec"),
        2,
        r"-secrets-url: want a URL such as https://setec\.example\.ts\.net$",
    )
    one_line(
        (*flags, "-secrets-url=http://setec", "-secrets-cache-dir="),
        2,
        "-secrets-url needs -secrets-cache-dir",
    )


def test_missing_certificates_are_refused(tmp_path: Path) -> None:
    flags = (
        "-a",
        "127.0.0.1:0",
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path),
        "-c",
        str(tmp_path / "k"),
        *QUIET,
    )
    one_line((*flags, "-hostname", "relay.example"), 78, r"relay\.example\.crt does not exist")
    one_line((*flags, "-hostname", "relay.example", "-certdir="), 2, "missing required -certdir")


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (("-hostname", "203.0.113.7"), 2, "-hostname 203.0.113.7 is an address: -acme-ip-certs"),
        (
            ("-certmode", "gcp", "-hostname", "relay.example"),
            2,
            "-certmode gcp with an external account needs -acme-eab-kid",
        ),
        (("-hostname", "relay.example", "-certdir="), 2, "missing required -certdir"),
        (
            ("-hostname", "relay.example", "-certdir", "/proc/none"),
            78,
            "cannot keep certificates in /proc/none",
        ),
        (
            ("-hostname", "relay.example", "-acme-ca-file", "/dev/null"),
            78,
            "-acme-ca-file /dev/null: not a regular file",
        ),
    ],
)
def test_settings_that_no_ca_can_work_with_are_refused(
    tmp_path: Path, flags: tuple[str, ...], exit_code: int, message: str
) -> None:
    ca = ("-acme-directory", "https://127.0.0.1:1/dir", "-certdir", str(tmp_path))
    one_line(
        ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET, *ca, *flags), exit_code, message
    )


def test_certificates_from_a_ca_need_a_library_that_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('acme', 'acme.client'):\n    sys.modules[name] = None\n"
    )
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), "-hostname", "relay.example", *QUIET)
    message = r"certificates from a CA need the library acme: pip install 'acme>=5'"
    one_line(
        (*flags, "-acme-directory", "https://127.0.0.1:1/dir", "-certdir", str(tmp_path)),
        69,
        message,
        {"PYTHONPATH": str(tmp_path)},
    )


def test_a_malformed_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "127.0.0.1.crt").write_text("junk")
    (tmp_path / "127.0.0.1.key").write_text("junk")
    flags = (
        "-a",
        "127.0.0.1:0",
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path),
        "-hostname",
        "127.0.0.1",
    )
    one_line((*flags, "-c", str(tmp_path / "k"), *QUIET), 78, r"127\.0\.0\.1\.crt is not a PEM")


def test_a_tcp_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(
            ("-a", f"127.0.0.1:{port}", "-c", str(tmp_path / "k"), *QUIET),
            71,
            rf"127\.0\.0\.1:{port}.*[Aa]ddress already in use",
        )


def test_a_stun_port_in_use_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        flags = ("-a", "127.0.0.1:0", "-stun-port", str(port), "-c", str(tmp_path / "k"))
        one_line(
            flags, 71, rf"STUN: cannot listen on UDP 127\.0\.0\.1:{port}: Address already in use"
        )


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    one_line(
        ("-a", "192.0.2.1:0", "-c", str(tmp_path / "k"), *QUIET),
        71,
        "192.0.2.1.*Cannot assign requested address",
    )


def test_a_host_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for helpers in (QUIET, ("-stun-port=0",)):
        flags = ("-a", "no-such-host.invalid:0", "-c", str(tmp_path / "k"), *helpers)
        one_line(flags, 71, r"relay: (STUN: )?cannot listen on no-such-host\.invalid(:0)?: ")


def test_a_malformed_environment_is_refused(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    one_line(flags, 78, "TS_DEBUG_TRUSTED_CIDRS", {"TS_DEBUG_TRUSTED_CIDRS": "everyone"})


@pytest.mark.parametrize(
    "flags",
    [
        ("-hostname", "relay.example"),
        ("-certdir", "certs", "-acme-email", "a@b.example"),
        ("-certmode", "gcp"),
    ],
)
def test_flags_for_certificates_that_are_of_no_use_are_named(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET, *flags) as running:
        named = ", ".join(flag for flag in flags if flag.startswith("-"))
        assert (
            f"plain HTTP, whatever {named}: certificates from a CA are used on port 443 only; -acme-directory"
            in running.said
        )


def test_the_start_names_the_admission_rules(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(
        f"{NodePrivate.generate().public_key.text}\n{NodePrivate.generate().public_key.text}\n"
    )
    nobody = tmp_path / "nobody"
    nobody.write_text("# nobody\n")
    start = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    with relay(*start) as running:
        assert "\nadmission: anybody\n" in running.said
    lists = ("-allow-keys", str(keys), "-deny-keys", str(nobody))
    with relay(*start, *lists, "-verify-client-url=https://u:p@a.example/s") as running:
        said = running.find(r"\nadmission: (.*)\n")
        assert (
            said
            == "2 keys allowed, 0 keys denied; https://a.example (all clients get in while it cannot be reached)"
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


@pytest.mark.parametrize("limit", [8, 12, 16, 63])
def test_too_few_descriptors_are_one_line(tmp_path: Path, limit: int) -> None:
    script = f'ulimit -n {limit}; exec "{COMMAND}" -a 127.0.0.1:0 -c {tmp_path / "k"} -stun=false'
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 71
    assert (
        done.stderr
        == f"fastderp-relay: {limit} descriptors are allowed, and a relay needs 64 at least: raise `ulimit -n`\n"
    )


def test_more_workers_than_there_are_descriptors_for_are_one_line(tmp_path: Path) -> None:
    script = f'ulimit -n 64; exec "{COMMAND}" -a 127.0.0.1:0 -c {tmp_path / "k"} -stun=false -workers 256'
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (
        71,
        "fastderp-relay: no memory or descriptors left for the worker threads\n",
    )


def test_world_readable_secrets_are_named(tmp_path: Path) -> None:
    secret, key = tmp_path / "mesh.key", tmp_path / "relay.key"
    secret.write_text("ab" * 32)
    secret.chmod(0o644)
    flags = (
        "-certmode",
        "manual",
        "-certdir",
        str(tmp_path),
        "-hostname",
        "127.0.0.1",
        "-mesh-psk-file",
        str(secret),
    )
    with relay("-a", "127.0.0.1:0", "-c", str(key), *QUIET, *flags) as running:
        assert re.findall(
            r"(\S+) is a secret, and everybody on this machine can read it: chmod 600 it",
            running.said,
        ) == [str(secret)]
    for path in (secret, key, tmp_path / "127.0.0.1.key"):
        path.chmod(0o640 if path == secret else 0o604)
    with relay("-a", "127.0.0.1:0", "-c", str(key), *QUIET, *flags) as running:
        assert re.findall(r"(\S+) is a secret", running.said) == [
            str(key),
            str(tmp_path / "127.0.0.1.key"),
        ]


def test_threads_that_move_packets_go_before_the_one_that_logs_in(tmp_path: Path) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "key"), "--workers=2", *QUIET) as running:
        pid = running.process.pid
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        niceness = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert niceness.pop(pid) == min(19, ours + 10)
    assert list(niceness.values()).count(ours) >= 2
