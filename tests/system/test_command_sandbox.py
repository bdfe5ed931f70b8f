"""`fastderp-relay` as another user, in another folder, in the sandbox of the shipped unit."""

from __future__ import annotations

import re

import pytest

from tests.kit.sandbox import Sandbox, directives, needs_root, pythons

pytestmark = [needs_root, pytest.mark.root]

SERVED = ("-a", "127.0.0.1:0", "-stun=false")


def unit_arguments(flags: str) -> str:
    """Return the arguments of the unit's command, in shell syntax."""
    command = directives()["ExecStart"]
    assert command.startswith("/usr/bin/env fastderp-relay ")
    return command.partition("fastderp-relay ")[2].replace("$FLAGS", flags)


@pytest.mark.parametrize("python", pythons())
def test_the_shipped_unit_starts_in_its_own_sandbox(python: str) -> None:
    arguments = unit_arguments("-certmode manual -hostname 203.0.113.7")
    with Sandbox(python).started(arguments) as running:
        assert re.search(r"serves https on \S+:443[,;]", running.said)
        assert re.search(r"plain HTTP on \S+:80\b", running.said)
        assert "STUN on UDP 3478" in running.said
        assert "kept in /var/lib/fastderp/relay.key" in running.said
        assert "sha256-raw:" in running.said


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize(
    "home", ["/root", "/home/ann", "/proc/1/root", "", "relative", "/dev/null"]
)
def test_a_home_without_read_permission_is_no_traceback(python: str, home: str) -> None:
    code, said = Sandbox(python, env={"HOME": home}).run("-version")
    assert code == 0, said
    assert re.fullmatch(r"fastderp-relay \S+\ncrypto .*\n", said)


@pytest.mark.parametrize(
    "sandbox",
    [
        Sandbox(),
        Sandbox(user=65534, env={"HOME": "/root"}),
        Sandbox(user=0, env={"HOME": "/root"}),
        Sandbox(env={"HOME": "", "PATH": "", "LANG": ""}),
        Sandbox(umask="0"),
        Sandbox(umask="0777"),
        Sandbox(folder="mkdir /tmp/gone && cd /tmp/gone && rmdir /tmp/gone"),
        Sandbox(folder="mkdir -m 0 /tmp/closed && cd /tmp/closed"),
        Sandbox(env={"XDG_CACHE_HOME": "/root/cache", "HOME": "/root"}),
    ],
    ids=[
        "unit", "nobody", "root", "no home", "umask 0", "umask 777", "folder gone",
        "folder closed", "cache",
    ],
)  # fmt: skip
def test_it_serves_as_any_user_from_any_folder(sandbox: Sandbox) -> None:
    arguments = f"{' '.join(SERVED)} -c $STATE_DIRECTORY/relay.key"
    with sandbox.started(arguments) as running:
        assert "kept in /var/lib/fastderp/relay.key" in running.said
        assert "readable by every user of this machine" not in running.said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-c /etc/relay.key", r"/etc/relay\.key.*: Read-only file system"),
        ("-c /root/relay.key", r"/root/relay\.key.*: Permission denied"),
        (
            "-c $STATE_DIRECTORY/k -mesh-psk-file /root/mesh.key",
            r"/root/mesh\.key: .*Permission denied",
        ),
        ("-c $STATE_DIRECTORY/k -allow-keys /root/keys", r"/root/keys: .*Permission denied"),
        ("-c $STATE_DIRECTORY/k -rate-config /root/rates", r"/root/rates: .*Permission denied"),
        ("-c $STATE_DIRECTORY/k -mesh-with @/root/members", r"/root/members: .*Permission denied"),
        (
            "-c $STATE_DIRECTORY/k -certmode manual -hostname 192.0.2.1 -certdir /root/c",
            r"/root/c.*: Permission denied",
        ),
        (
            "-c $STATE_DIRECTORY/k -acme-directory https://ca.test/d -hostname a.test"
            " -certdir /root/c",
            r"/root/c.*: Permission denied",
        ),
    ],
)  # fmt: skip
def test_a_file_without_read_permission_is_one_line(arguments: str, message: str) -> None:
    code, said = Sandbox().run(f"{' '.join(SERVED)} {arguments}")
    assert code == 78, said
    assert said.count("\n") == 1 and re.search(message, said), said
