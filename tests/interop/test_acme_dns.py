"""Certificates from Pebble by dns-01, and for a machine behind NAT."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from fastderp.errors import EX_CONFIG
from tests.interop.acme_relay import PATIENCE_S, leaf, running
from tests.interop.pebble import DNS_PORT, HTTP_PORT, NAME, UNUSED_PORT, Pebble, dns_server
from tests.kit.command import refused
from tests.kit.relay import eventually

# The first build of Pebble takes a minute and counts for the first test.
pytestmark = pytest.mark.timeout(600)

HOOK = """#!{python}
import json, sys, urllib.request
action, name, value = sys.argv[1:]
page = {{"present": "set-txt", "cleanup": "clear-txt"}}[action]
record = json.dumps({{"host": name, "value": value}}).encode()
urllib.request.urlopen("{url}/" + page, record, timeout=20).read()
with open("{calls}", "a") as calls:
    print(action, name, file=calls)
"""


@pytest.fixture
def hook(ca: Pebble, dns_program: Path, tmp_path: Path) -> Iterator[Path]:
    """A hook that changes the records of the CA's name server, and lists its calls in `calls`."""
    with dns_server(dns_program, ca.address) as url:
        ca.nameserver = f"{ca.address}:{DNS_PORT}"
        path = tmp_path / "hook"
        path.write_text(HOOK.format(python=sys.executable, url=url, calls=tmp_path / "calls"))
        path.chmod(0o755)
        yield path


def test_a_name_is_proved_by_dns_at_the_start_without_an_open_port(
    ca: Pebble, hook: Path, tmp_path: Path
) -> None:
    ca.start(tlsPort=UNUSED_PORT, httpPort=UNUSED_PORT)
    with running(ca, "-acme-dns-hook", str(hook), "-http-port", "-1") as its:
        eventually((ca.cert_dir / NAME).exists, PATIENCE_S)
        names = leaf(ca).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [NAME]
    record = f"_acme-challenge.{NAME}."
    assert (tmp_path / "calls").read_text() == f"present {record}\ncleanup {record}\n"
    assert its.said.count("ordering") == 1


def test_a_hook_that_fails_is_the_reason_in_the_log_and_the_record_is_removed(
    ca: Pebble, tmp_path: Path
) -> None:
    ca.start()
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\necho no such zone\nexit 3\n')
    hook.chmod(0o755)
    with running(ca, "-acme-dns-hook", str(hook)) as its:
        eventually((ca.cert_dir / "acme-failures.json").exists, PATIENCE_S)
    assert (
        f"{NAME}: no certificate from {ca.address}: -acme-dns-hook {hook} present: exit code 3: "
        "no such zone; next attempt in 60 s, or on SIGHUP\n" in its.said
    )
    assert (tmp_path / "calls").read_text() == "present\ncleanup\n"


def test_a_relay_that_is_stopped_while_the_hook_runs_ends_it_and_removes_the_record(
    ca: Pebble, tmp_path: Path
) -> None:
    ca.start()
    hook, calls = tmp_path / "hook", tmp_path / "calls"
    hang = f'if [ "$1" = present ]; then sleep 600; echo went on >> {calls}; fi'
    hook.write_text(f'#!/bin/sh\necho "$1 $$" >> {calls}\n{hang}\n')
    hook.chmod(0o755)
    with running(ca, "-acme-dns-hook", str(hook), "-drain-time", "0s") as its:
        eventually(calls.exists, PATIENCE_S)
    actions, processes = zip(
        *(line.split() for line in calls.read_text().splitlines()), strict=True
    )
    assert actions == ("present", "cleanup")
    assert not [each for each in processes if Path("/proc", each).exists()]
    assert "Traceback" not in its.said and "may remain" not in its.said


def test_a_wrong_record_is_refused_by_the_ca_with_its_words(ca: Pebble, hook: Path) -> None:
    ca.start()
    hook.write_text(hook.read_text().replace('"value": value', '"value": value[::-1]'))
    with running(ca, "-acme-dns-hook", str(hook)) as its:
        eventually((ca.cert_dir / "acme-failures.json").exists, PATIENCE_S)
    reason = "dns-01: Correct value not found for DNS challenge"
    assert f"{NAME}: no certificate from {ca.address}: {reason}" in its.said


def test_a_missing_hook_stops_the_start(ca: Pebble, tmp_path: Path) -> None:
    ca.start()
    code, said = refused(*ca.flags, "-acme-dns-hook", str(tmp_path / "none"))
    assert code == EX_CONFIG
    assert said.endswith(f"-acme-dns-hook {tmp_path}/none: no such program, or not executable\n")


@contextlib.contextmanager
def port_forward(public: str, private: str, port: int) -> Iterator[None]:
    """Forward connections to a public address, one request each, as a NAT does."""

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client, socket.create_connection((private, port), 20) as inside:
                    inside.sendall(client.recv(65536))
                    inside.settimeout(1)
                    with contextlib.suppress(TimeoutError):
                        while answer := inside.recv(65536):
                            client.sendall(answer)

    with socket.create_server((public, port)) as server:
        thread = threading.Thread(target=serve, args=(server,), name="port forward")
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def test_behind_nat_the_certificate_is_for_the_public_address(ca: Pebble) -> None:
    ca.start()
    public = str(ipaddress.ip_address(ca.address) + 1)
    with (
        port_forward(public, ca.address, HTTP_PORT),
        running(ca, "-acme-ip-certs", "-public-ip", public) as its,
    ):
        names = leaf(ca, public).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(public)]
        with pytest.raises(ssl.SSLCertVerificationError):
            leaf(ca, ca.address)
    assert its.said.count("ordering") == 1
    assert f"{public}: ordering" in its.said
