"""`fastderp-relay check`: settings with their origins, each file read, nothing bound or made."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePrivate
from tests.kit.command import refused, relay

SECRET = "swordfish"


def test_settings_are_shown_with_their_origin(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text("[limits]\ntcp-write-timeout = '3s'\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ("-a", address, "-c", str(tmp_path / "relay.key"), "-config", str(config))
        code, said = refused("check", *flags, env={"FASTDERP_WORKERS": "2"})
    rows = {tuple(line.split(None, 3)) for line in said.splitlines() if line.startswith("*")}
    assert code == 0, said
    assert ("*", "a", address, "-a") in rows
    assert ("*", "workers", "2", "$FASTDERP_WORKERS") in rows
    assert ("*", "tcp-write-timeout", "3s", f"{config} [limits]") in rows
    assert f"ok     key: {tmp_path / 'relay.key'} does not exist: the start creates it" in said
    assert os.listdir(tmp_path) == ["relay.toml"]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    key, mesh = tmp_path / "relay.key", tmp_path / "mesh.key"
    with relay("-a", "127.0.0.1:0", "-stun=false", "-c", str(key)) as running:
        public = running.find(r"public key (\S+),")
    mesh.write_text("ab" * 32)
    code, said = refused(
        "check", "-a", ":1", "-c", str(key), "-mesh-psk-file", str(mesh), "-acme-eab-key", SECRET,
        "-verify-client-url", f"https://me:{SECRET}@example.com/x?token={SECRET}",
    )  # fmt: skip
    assert code == 0, said
    assert SECRET not in said and "ab" * 32 not in said
    assert "https://example.com/x" in said
    assert public in said
    assert "mesh: 1 keys, 0 members" in said


@pytest.mark.parametrize(
    ("flags", "content", "code", "message"),
    [
        (("-c", "FILE"), "{}", 78, "WRONG  key: "),
        (("-c", "FILE/key"), "", 78, "/key: cannot create it: Not a directory"),
        (
            ("-certmode", "manual", "-certdir", "FILE/x", "-hostname", "127.0.0.1"),
            "", 78, "WRONG  certificate: cannot keep certificates in ",
        ),
        (
            ("-acme-directory", "https://ca.test/d", "-certdir", "FILE", "-hostname", "a.test"),
            "", 78, "WRONG  acme: cannot keep certificates in ",
        ),
        (("-allow-keys", "FILE"), "nonsense", 78, "WRONG  admission: "),
        (("-rate-config", "FILE"), "[]", 78, "WRONG  limits: "),
        (("-mesh-psk-file", "FILE"), "00", 78, "WRONG  mesh: "),
        (("-mesh-with", "@FILE"), "a/b/c", 78, "WRONG  mesh: "),
        (
            ("-certmode", "manual", "-certdir", "DIR", "-hostname", "a.example"),
            "", 78, "WRONG  certificate: ",
        ),
        (
            ("-a", "no-such-host.invalid:0"),
            "", 71, "WRONG  listeners: cannot listen on no-such-host.invalid",
        ),
        (
            ("-a", "unix:DIR/none/relay.sock", "-trusted-proxies", "unix"),
            "", 71, "none/relay.sock: No such file or directory",
        ),
        (("-verify-client-url", "gopher://x"), "", 2, "WRONG  admission: -verify-client-url: "),
    ],
)  # fmt: skip
def test_an_unusable_setting_is_reported_with_the_exit_code_of_a_start(
    tmp_path: Path, flags: tuple[str, ...], content: str, code: int, message: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    given = [part.replace("FILE", str(file)).replace("DIR", str(tmp_path)) for part in flags]
    base = () if "-a" in flags else ("-a", "127.0.0.1:0")
    key = () if "-c" in flags else ("-c", str(tmp_path / "k"))
    found, said = refused("check", *base, *key, *given)
    assert message in said, said
    assert found == code


def test_the_warnings_of_a_start_are_notes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(key), "-derp=false")
    with relay(*flags) as running:
        assert "-derp=false: packets are not relayed\n" in running.said
    key.chmod(0o644)
    code, said = refused("check", *flags)
    assert code == 0
    assert "\nnote   -derp=false: packets are not relayed\n" in said
    assert f"\nnote   {key} is a secret, but readable by every user" in said


def test_malformed_trusted_networks_are_one_line(tmp_path: Path) -> None:
    code, said = refused(
        "check", "-a", ":1", "-c", str(tmp_path / "k"), env={"TS_DEBUG_TRUSTED_CIDRS": "everyone"}
    )
    assert (code, said.count("\n")) == (78, 1)


def test_a_configuration_file_runs_a_relay(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(NodePrivate.generate().public_key.text + "\n")
    config = tmp_path / "relay.toml"
    config.write_text(
        f'[listen]\na = "127.0.0.1:0"\nstun = false\n[key]\nc = "{tmp_path / "k"}"\n'
        f'[admission]\nallow-keys = "{keys}"\n'
    )
    with relay("-config", str(config)) as running:
        assert "admission: 1 keys allowed" in running.said
