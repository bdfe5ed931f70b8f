"""The image's entry point as a container engine starts it, with the known derper images' variables.

`tests/kit/container.py` lists the simulated parts.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.container import ROOT, STATE, Container, container, image_variables
from tests.kit.memory import SANITIZED
from tests.kit.relay import eventually
from tests.kit.sandbox import needs_root

pytestmark = pytest.mark.skipif(SANITIZED, reason="the root has no sanitizer's library")

ENTRYPOINT = runpy.run_path(str(ROOT / "deploy" / "entrypoint.py"))
# A certificate for an address needs no CA.
ADDRESS = {"DERP_DOMAIN": "203.0.113.7", "DERP_CERT_MODE": "manual"}
PLAIN = {"DERP_ADDR": "127.0.0.1:3340", "DERP_STUN": "false", "DERP_HTTP_PORT": "-1"}

TALK = """
import asyncio
from fastderp import DerpError, HTTPClient, NodePrivate, ReceivedPacket, ServerInfo

async def main():
    ann, bob = (
        HTTPClient({url!r}, NodePrivate.generate(), cert_name={pin!r}, dial_host="127.0.0.1")
        for _ in range(2)
    )
    async with ann, bob, asyncio.timeout(60):
        for client in (ann, bob):
            assert isinstance(await client.recv(), ServerInfo)
        await ann.send(bob.public_key, b"hello")
        while not isinstance(packet := await bob.recv(), ReceivedPacket):
            pass
        print(packet.data)

try:
    asyncio.run(main())
except DerpError as error:
    print(type(error).__name__, error)
"""
ASK_STUN = """
import os, socket
from fastderp.client.stun import binding_request, parse_response
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(binding_request(os.urandom(12)), ("127.0.0.1", {port}))
    print(parse_response(sock.recv(2048))[1])
"""
REFUSING_SERVICE = """
import http.server, sys
class Refuse(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"Allow": false}')
server = http.server.HTTPServer(("127.0.0.1", 9000), Refuse)
open(sys.argv[1], "w").close()
server.serve_forever()
"""


def exchanged(running: Container, url: str, pin: str = "") -> str:
    """Have two clients exchange a packet; return it, or the error."""
    return running.beside(TALK.format(url=url, pin=pin)).strip()


@needs_root
@pytest.mark.root
class TestContainer:
    def test_it_serves_clients_over_tls_and_stun_and_is_healthy(self, tmp_path: Path) -> None:
        with container(tmp_path, ADDRESS) as running:
            said = running.relay.said
            assert re.search(r"serves https on \S+:443[,;]", said)
            assert re.search(r"plain HTTP on \S+:80\b", said)
            assert f"kept in {STATE}/relay.key" in said
            pin = running.relay.find(r"(sha256-raw:[0-9a-f]{64})")
            assert exchanged(running, "https://203.0.113.7/derp", pin) == "b'hello'"
            assert running.beside(ASK_STUN.format(port=3478)) == "127.0.0.1\n"
            assert running.is_healthy() == (0, "")
            code, said = running.stop()
            assert code == 0, said
            assert "Traceback" not in said

    def test_it_serves_plain_http_behind_a_proxy(self, tmp_path: Path) -> None:
        with container(tmp_path, PLAIN) as running:
            assert "serves http on 127.0.0.1:3340" in running.relay.said
            assert "STUN on" not in running.relay.said
            assert exchanged(running, "http://127.0.0.1:3340/derp") == "b'hello'"
            assert running.is_healthy() == (0, "")

    def test_the_ports_for_stun_and_http_and_the_folder_are_those_asked_for(
        self, tmp_path: Path
    ) -> None:
        variables = {
            **ADDRESS,
            "DERP_ADDR": ":8443",
            "DERP_HTTP_PORT": "8080",
            "DERP_STUN": "true",
            "DERP_STUN_PORT": "3479",
            "DERP_CERT_DIR": f"{STATE}/elsewhere",
        }
        with container(tmp_path, variables) as running:
            assert re.search(r"plain HTTP on \S+:8080\b", running.relay.said)
            assert Path(f"/proc/{running.pid}/root{STATE}/elsewhere/203.0.113.7.crt").exists()
            assert running.beside(ASK_STUN.format(port=3479)) == "127.0.0.1\n"
            assert running.is_healthy() == (0, "")

    def test_a_relay_on_a_unix_socket_is_healthy(self, tmp_path: Path) -> None:
        variables = {**PLAIN, "DERP_ADDR": "unix:/tmp/relay.sock"}
        with container(tmp_path, variables, "-trusted-proxies=unix") as running:
            assert running.is_healthy() == (0, "")

    def test_a_flag_of_the_command_wins_over_a_variable(self, tmp_path: Path) -> None:
        variables = {**PLAIN, "FASTDERP_HEALTH_URL": "http://127.0.0.1:3341/derp/probe"}
        with container(tmp_path, variables, "-a", "127.0.0.1:3341") as running:
            assert "serves http on 127.0.0.1:3341" in running.relay.said
            assert running.is_healthy() == (0, "")
            # The other variables name another address, so the check needs this one.
            del running.variables["FASTDERP_HEALTH_URL"]
            code, said = running.is_healthy()
            assert (code, said.count("\n")) == (1, 1)

    def test_the_relays_folder_is_the_one_asked_for(self, tmp_path: Path) -> None:
        with container(tmp_path, {**PLAIN, "FASTDERP_STATE_DIR": "/tmp/state"}) as running:
            assert "kept in /tmp/state/relay.key" in running.relay.said

    def test_the_admission_service_decides(self, tmp_path: Path) -> None:
        variables = {**PLAIN, "DERP_VERIFY_CLIENT_URL": "http://127.0.0.1:9000/"}
        service = tmp_path / "service.py"
        service.write_text(REFUSING_SERVICE)
        folder = tmp_path / "root"
        folder.mkdir()
        # The relay admits every client while nothing serves there.
        serves = tmp_path / "serves"
        before = (
            f"{sys.executable} {service} {serves} & while ! [ -e {serves} ]; do sleep 0.1; done"
        )
        with container(folder, variables, before=before) as running:
            assert exchanged(running, "http://127.0.0.1:3340/derp").startswith("DialError")

    def test_without_tailscaled_verify_clients_admits_no_client(self, tmp_path: Path) -> None:
        with container(tmp_path, {**PLAIN, "DERP_VERIFY_CLIENTS": "true"}) as running:
            assert exchanged(running, "http://127.0.0.1:3340/derp").startswith("DialError")
            assert running.is_healthy() == (0, "")

    def test_no_zombie_remains_of_a_process_that_lost_its_parent(self, tmp_path: Path) -> None:
        with container(tmp_path, PLAIN) as running:
            shell = ["nsenter", f"--target={running.pid}", "--pid", "sh", "-c"]
            subprocess.run([*shell, "sleep 600 >&- 2>&- &"], check=True, timeout=20)
            [orphan] = running.children()
            os.kill(orphan, signal.SIGTERM)
            eventually(lambda: not running.children())

    def test_the_root_is_read_only_and_there_are_no_capabilities(self, tmp_path: Path) -> None:
        with container(tmp_path, PLAIN) as running:
            status = Path(f"/proc/{running.pid}/status").read_text()
            assert re.search(r"^Uid:(\t65532){4}$", status, re.M)
            assert re.search(r"^Gid:(\t65532){4}$", status, re.M)
            assert len(re.findall(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\t0+$", status, re.M)) == 5
            mounts = Path(f"/proc/{running.pid}/mountinfo").read_text()
            assert re.search(r" / / ro[, ]| \S+ / ro[, ]", mounts)


@pytest.mark.parametrize(
    ("variables", "flags"),
    [
        ({}, []),
        ({"DERP_DOMAIN": "derp.example.com"}, ["-hostname=derp.example.com"]),
        ({"DERP_ADDR": ":8443", "DERP_STUN": "false"}, ["-a=:8443", "-stun=false"]),
        ({"DERP_VERIFY_CLIENTS": "true"}, ["-verify-clients=true"]),
        ({"DERP_VERIFY_CLIENT_URL": ""}, []),
        ({"DERP_CERT_DIR": "/app/certs"}, ["-certdir=/app/certs"]),
    ],
)
def test_a_variable_is_the_flag_of_derper(variables: dict[str, str], flags: list[str]) -> None:
    kept = ["fastderp-relay", f"-c={STATE}/relay.key", f"-certdir={STATE}/certs"]
    assert ENTRYPOINT["command"](variables, ["-v"]) == [*kept, *flags, "-v"]


def test_variables_of_kubernetes_services_are_no_flags() -> None:
    links = {
        "DERP_STUN_SERVICE_HOST": "10.0.0.1",
        "DERP_STUN_PORT": "udp://10.0.0.1:3478",
        "DERP_HTTP_SERVICE_HOST": "10.0.0.2",
        "DERP_HTTP_PORT": "tcp://10.0.0.2:80",
    }
    plain = ENTRYPOINT["command"]({}, [])
    assert ENTRYPOINT["command"](links, []) == plain
    own = links | {"DERP_STUN_PORT": "3479"}
    assert ENTRYPOINT["command"](own, []) == [*plain, "-stun-port=3479"]


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "https://127.0.0.1:443/derp/probe"),
        ({"DERP_ADDR": ":3340"}, "http://127.0.0.1:3340/derp/probe"),
        ({"DERP_ADDR": "[::]:443"}, "https://127.0.0.1:443/derp/probe"),
        ({"DERP_ADDR": "[::1]:443"}, "https://[::1]:443/derp/probe"),
        ({"DERP_ADDR": "192.0.2.1:https"}, "https://192.0.2.1:443/derp/probe"),
        ({"DERP_ADDR": ":8443", "DERP_CERT_MODE": "manual"}, "https://127.0.0.1:8443/derp/probe"),
        ({"FASTDERP_A": "[::1]:3340"}, "http://[::1]:3340/derp/probe"),
        ({"DERP_ADDR": "unix:/tmp/relay.sock"}, "unix:/tmp/relay.sock"),
        ({"FASTDERP_HEALTH_URL": "http://a.test/"}, "http://a.test/"),
    ],
)
def test_the_health_check_asks_where_the_relay_serves(variables: dict[str, str], url: str) -> None:
    assert ENTRYPOINT["health_url"](variables) == url


def test_the_image_sets_no_variable_of_the_relay() -> None:
    assert not [name for name in image_variables() if name.startswith(("DERP_", "FASTDERP_"))]
