"""`fastderp-relay probe`: a relay from outside, each step with its result, exit code by the whole."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastderp.wire.keys import load_or_create_server_key
from tests.kit.certificates import self_signed
from tests.kit.command import COMMAND, manual, refused, relay

PLAIN = ("-a", "127.0.0.1:0", "-http-port", "-1")
NO_STUN = "-stun=false"


def probed(url: str, *flags: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Probe; return the exit code, outcome and text by step, and the last line."""
    done = subprocess.run(
        [COMMAND, "probe", url, *flags], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    steps = {}
    for line in lines:
        outcome, name = line.split()[:2]
        steps[name] = (outcome, line[30:].strip())
    return done.returncode, steps, last


def outcomes(steps: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: outcome for name, (outcome, _) in steps.items()}


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Serve HTTP on a port until the block ends: an answer to each head of a request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if head := connection.recv(4096):
                        connection.sendall(answer(head))

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_plain_relay_passes_every_step(tmp_path: Path) -> None:
    with relay(*PLAIN, "-stun-port", "0", "-c", str(tmp_path / "relay.key")) as running:
        key = running.find(r"public key (\S+)")[:16]
        stun = str(running.stun_port)
        code, steps, last = probed(f"http://127.0.0.1:{running.port}", "-stun-port", stun)
    assert code == 0, steps
    assert list(steps) == [
        "name", "tcp", "http-probe", "http-204", "upgrade", "login", "ping", "echo", "stun",
    ]  # fmt: skip
    assert set(outcomes(steps).values()) == {"ok"}
    assert steps["login"][1] == f"{key}…, protocol 2, no rate limit"
    assert steps["echo"][1].startswith("100 packets there and back, in order; max ")
    assert f"127.0.0.1:{stun} sees us at 127.0.0.1:" in steps["stun"][1]
    assert last.endswith(": all good")


@pytest.mark.parametrize("path", ["", "/", "/derp", "/derp/"])
def test_the_path_of_the_url_may_be_left_out(path: str, tmp_path: Path) -> None:
    with relay(*PLAIN, NO_STUN, "-c", str(tmp_path / "relay.key")) as running:
        code, steps, _ = probed(f"ws://localhost:{running.port}{path}", NO_STUN, "-count", "20")
    assert code == 0, steps
    assert steps["websocket"] == ("ok", "GET /derp: 101")


def test_a_relay_with_a_self_signed_certificate_passes_with_its_pin(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-http-port", "-1", NO_STUN, *manual(tmp_path, "127.0.0.1"))
    with relay(*flags, "-c", str(tmp_path / "relay.key")) as running:
        place = f"127.0.0.1:{running.port}"
        root = tmp_path / "127.0.0.1.crt"
        der = ssl.PEM_cert_to_DER_cert(root.read_text())
        pin = f"sha256-raw:{hashlib.sha256(der).hexdigest()}"
        code, steps, _ = probed(place, NO_STUN, "-cert-name", pin)
        assert code == 0, steps
        assert steps["tls"][1].startswith("TLSv1.3, TLS_")
        assert steps["cert"][1] == f"127.0.0.1; expires in 365 days; matches {pin[:19]}…"
        code, steps, _ = probed(f"wss://{place}", NO_STUN, "-cafile", str(root))
        assert code == 0, steps
        assert steps["cert"][1] == "127.0.0.1; expires in 365 days; self-signed"

        code, steps, last = probed(place, NO_STUN)
        assert code == 1
        assert steps["tls"] == ("FAILED", "certificate verify failed: self-signed certificate")
        assert steps["cert"][1].endswith(f"self-signed, {pin}")
        assert steps["upgrade"] == ("skipped", "an earlier step failed")
        assert last == f"https://{place}: NOT good (1 failed, 6 skipped)"
        code, steps, _ = probed(place, NO_STUN, "-cert-name", f"sha256-raw:{'00' * 32}")
        assert code == 1
        assert steps["tls"][1] == "the server's certificate is not the pinned one"


@pytest.mark.parametrize(
    ("names", "days", "tls", "cert"),
    [
        (["127.0.0.1"], (-9, -3), "certificate has expired", "127.0.0.1; expired 3.0 days ago"),
        (["127.0.0.1"], (2, 9), "not yet valid", "127.0.0.1; not valid for another 2.0 days"),
        (["a.test", "b.test", "c.test"], (-1, 9), "mismatch", "a.test, b.test and 1 more; expires"),
    ],
)
def test_a_certificate_that_clients_refuse_is_described(
    names: list[str], days: tuple[int, int], tls: str, cert: str, tmp_path: Path
) -> None:
    made = self_signed(*names, days=days)
    pem = ssl.DER_cert_to_PEM_cert(made.der)
    (tmp_path / "served.pem").write_text(pem)
    (tmp_path / "served.key").write_bytes(made.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "served.pem", tmp_path / "served.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url, root = f"https://127.0.0.1:{server.server_port}", str(tmp_path / "served.pem")
        code, steps, _ = probed(url, NO_STUN, "-cafile", root)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert code == 1
    assert steps["tls"][0] == "FAILED" and tls in steps["tls"][1]
    assert steps["cert"][1].startswith(cert)


def test_a_client_that_is_not_admitted_fails_at_the_login(tmp_path: Path) -> None:
    keys = [load_or_create_server_key(tmp_path / f"{n}.key") for n in range(3)]
    allowed = tmp_path / "allowed"
    allowed.write_text("".join(f"{key.public_key}\n" for key in keys[:2]))
    with relay(
        *PLAIN, NO_STUN, "-c", str(tmp_path / "relay.key"), "-allow-keys", str(allowed)
    ) as running:
        url = f"http://127.0.0.1:{running.port}"
        code, steps, _ = probed(url, NO_STUN)
        assert code == 1
        assert steps["login"][0] == "FAILED"
        assert steps["login"][1].startswith("the relay closed the connection instead of accepting")
        assert steps["login"][1].endswith("; if it admits known keys only, use -key")
        assert steps["echo"][0] == "skipped"

        code, steps, _ = probed(url, NO_STUN, "-key", str(tmp_path / "0.key"))
        assert code == 0, steps
        assert steps["echo"][1].startswith("100 packets to itself, in order")
        both = ("-key", str(tmp_path / "0.key"), "-key", str(tmp_path / "1.key"))
        code, steps, _ = probed(url, NO_STUN, *both)
        assert code == 0, steps
        assert steps["echo"][1].startswith("100 packets there and back")
        one_refused = ("-key", str(tmp_path / "0.key"), "-key", str(tmp_path / "2.key"))
        code, steps, _ = probed(url, NO_STUN, *one_refused)
        assert code == 1
        assert steps["login"][0] == "ok" and steps["echo"][0] == "FAILED"


def test_the_rate_limit_of_the_relay_is_shown(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(
        '{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 200000}'
    )
    with relay(
        *PLAIN, NO_STUN, "-c", str(tmp_path / "relay.key"), "-rate-config", str(rates)
    ) as running:
        code, steps, _ = probed(f"http://127.0.0.1:{running.port}", NO_STUN)
    assert code == 0, steps
    assert steps["login"][1].endswith("1000000 bytes/s, burst 200000")


def test_the_echo_waits_for_the_rate_that_the_relay_allows(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text('{"PerClientRateLimitBytesPerSec": 100000, "PerClientRateBurstBytes": 70000}')
    flags = (NO_STUN, "-c", str(tmp_path / "relay.key"), "-rate-config", str(rates))
    with relay(*PLAIN, *flags) as running:
        url = f"http://127.0.0.1:{running.port}"
        code, steps, _ = probed(url, NO_STUN, "-timeout", "2", "-count", "250")
    assert code == 0, steps


def test_a_relay_without_stun_fails_that_step_only(tmp_path: Path) -> None:
    with relay(*PLAIN, NO_STUN, "-c", str(tmp_path / "relay.key")) as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        code, steps, _ = probed(f"http://127.0.0.1:{running.port}", "-stun-port", str(port))
    assert code == 1
    assert steps.pop("stun") == ("FAILED", f"127.0.0.1:{port}: Connection refused")
    assert set(outcomes(steps).values()) == {"ok"}


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_web_server_is_no_relay(scheme: str) -> None:
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
    with answering(lambda _: page) as port:
        code, steps, _ = probed(f"{scheme}://127.0.0.1:{port}", NO_STUN)
    name = "upgrade" if scheme == "http" else "websocket"
    assert code == 1
    assert steps["http-probe"] == ("FAILED", "GET /derp/probe: '404 Not Found' instead of 200")
    assert steps["http-204"][0] == "note"
    assert steps[name] == ("FAILED", "the relay answered '404 Not Found': 'no'")
    assert steps["login"][0] == "skipped"


@pytest.mark.parametrize("status", ["403 Forbidden", "429 Too Many Requests"])
def test_a_refused_upgrade_shows_the_status(status: str) -> None:
    def answer(head: bytes) -> bytes:
        line = "200 OK" if b"/derp/probe" in head else status
        return f"HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    with answering(answer) as port:
        code, steps, _ = probed(f"http://127.0.0.1:{port}", NO_STUN)
    assert code == 1
    assert steps["upgrade"] == ("FAILED", f"the relay answered {status!r}")


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (b"x" * 100, "the server does not speak DERP: frame of type 0x78 with 2021161080 bytes"),
        (b"", "the connection was closed"),
    ],
)
def test_an_upgrade_to_something_else_fails_at_the_login(after: bytes, text: str) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
    with answering(lambda _: head + after) as port:
        code, steps, _ = probed(f"http://127.0.0.1:{port}", NO_STUN)
    assert code == 1
    assert steps["upgrade"][0] == "ok"
    assert steps["login"] == ("FAILED", text)


def test_a_server_that_is_not_http_is_named() -> None:
    with answering(lambda _: b"SSH-2.0-x\r\n\r\n") as port:
        code, steps, _ = probed(f"http://127.0.0.1:{port}", NO_STUN)
        _, over_tls, _ = probed(f"https://127.0.0.1:{port}", NO_STUN)
    assert code == 1
    assert steps["http-probe"][1] == "GET /derp/probe: not an HTTP answer: 'SSH-2.0-x'"
    assert steps["upgrade"][1] == "not an HTTP answer: 'SSH-2.0-x'"
    assert over_tls["tls"][1].startswith("the peer does not speak TLS")
    assert over_tls["cert"][0] == "skipped"


def test_a_silent_server_fails_within_the_time_limit() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
    ):
        silent.bind(("127.0.0.1", 0))
        flags = ("-timeout", "1", "-stun-port", str(silent.getsockname()[1]))
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        code, steps, _ = probed(f"http://{place}", *flags)
        _, over_tls, _ = probed(f"https://{place}", *flags)
    assert code == 1
    for name in ("http-probe", "http-204", "upgrade"):
        assert steps[name] == ("FAILED", "no answer within 1 s")
    assert steps["stun"][1].endswith(": no answer within 1 s")
    assert over_tls["tls"] == ("FAILED", "no answer within 1 s")


def test_a_closed_port_and_an_unknown_name_skip_what_follows() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, steps, _ = probed(f"http://127.0.0.1:{port}", NO_STUN)
    assert code == 1
    assert steps.pop("name") == ("ok", "127.0.0.1")
    assert steps.pop("tcp") == ("FAILED", f"127.0.0.1:{port}: Connection refused")
    assert set(outcomes(steps).values()) == {"skipped"}
    code, steps, _ = probed("no-such-host.invalid")
    assert code == 1
    assert steps.pop("name")[0] == "FAILED"
    assert set(outcomes(steps).values()) == {"skipped"}
    assert "stun" in steps and "cert" in steps


def test_the_json_has_every_step(tmp_path: Path) -> None:
    with relay(*PLAIN, "-stun-port", "0", "-c", str(tmp_path / "relay.key")) as running:
        key = running.find(r"public key (nodekey:[0-9a-f]{64})")
        stun = str(running.stun_port)
        url = f"http://127.0.0.1:{running.port}"
        done = subprocess.run(
            [COMMAND, "probe", "--json", "-4", "-count=10", "-stun-port", stun, url],
            capture_output=True,
            timeout=60,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    steps = {step["step"]: step for step in found["steps"]}
    assert (found["url"], found["good"], found["failed"]) == (url, True, [])
    assert steps["name"]["addresses"] == ["127.0.0.1"]
    assert steps["http-probe"]["status"] == 200
    assert steps["login"]["server_key"] == key
    assert steps["echo"]["packets"] == 10 and steps["echo"]["lost"] == 0
    assert steps["stun"]["address"] == "127.0.0.1"
    assert all(step["seconds"] > 0 for step in found["steps"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "missing URL of the relay"),
        (("http://",), 2, "and a host, not 'http://'"),
        (("ftp://a.test",), 2, "a relay URL needs http://, https://, ws:// or wss://"),
        (("https://me@a.test",), 2, "a relay's URL must not contain a user"),
        (("a.test", "-count", "x"), 2, "-count: must be 1 to 10000, not 'x'"),
        (("a.test", "-stun-port", "65536"), 2, "-stun-port: must be 0 to 65535, not '65536'"),
        (("a.test", "--timeout=0"), 2, "-timeout: must be 0.1 to 3600, not '0'"),
        (("a.test", "-stun=maybe"), 2, "-stun: must be true or false"),
        (("a.test", "-4", "-6"), 2, "-6: not allowed with argument -4"),
        (("a.test", "-nonsense"), 2, "unrecognized arguments: -nonsense"),
        (("a.test", "-cert-name", "sha256-raw:12"), 2, "a certificate pin is sha256-raw: and 64"),
        (("a.test", "-key", "/proc/nonexistent"), 78, "key file /proc/nonexistent: no such file"),
        (
            ("a.test", "-cafile", "/proc/nonexistent"),
            78,
            "no usable certificates in /proc/nonexistent",
        ),
    ],
)
def test_a_wrong_use_is_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    found, said = refused("probe", *arguments)
    assert found == code
    assert said.startswith("fastderp-relay probe: ") and message in said
    assert said.count("\n") == 1


def test_the_help_explains_flags_and_exit_codes() -> None:
    code, said = refused("probe", "-help")
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    for word in ("-cert-name NAME", "-stun-port N", "exit codes:", "  78  "):
        assert word in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_probe_is_not_good(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [COMMAND, "probe", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert b"name" in process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == -number
    assert said == b""


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="making a PID namespace needs root"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_probe_that_is_process_1_of_a_container_ends_by_a_signal(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        unshare = ["unshare", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(
            [*unshare, COMMAND, "probe", url, "-timeout", "5"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert b"name" in process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number


def test_a_reader_that_closes_the_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [COMMAND, "probe", "no-such-host.invalid"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (74, b"")


def test_an_ipv6_address_needs_no_brackets() -> None:
    done = subprocess.run(
        [COMMAND, "probe", "::1", "-stun=false", "-timeout", "0.1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1].startswith("https://[::1]: ")
