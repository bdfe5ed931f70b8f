"""The command that sets DNS records for a CA (RFC 8555 §8.4)."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from pathlib import Path

import pytest

from fastderp.errors import ConfigError, IssuanceError
from fastderp.server.certificates.acme import dns_hook
from fastderp.server.certificates.acme.dns_hook import DnsHook, check_hook, parse_hook
from tests.kit.relay import eventually

NAME = "derp.example.com"
AUTHORIZATION = "token.thumbprint"
VALUE = base64.urlsafe_b64encode(hashlib.sha256(AUTHORIZATION.encode()).digest()).decode()[:43]


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A command that writes its arguments to a file; a test appends to it."""
    path = tmp_path / "hook"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    path.chmod(0o755)
    return path


def hook(command: Path, *arguments: str) -> DnsHook:
    return DnsHook((str(command), *arguments), NAME)


def append(command: Path, text: str) -> None:
    command.write_text(command.read_text() + text)


def calls(command: Path) -> list[str]:
    return (command.parent / "calls").read_text().splitlines()


def test_the_command_gets_the_action_the_record_and_its_value(command: Path) -> None:
    ours = hook(command, "-zone", "a b")
    ours.present(AUTHORIZATION)
    ours.clean_up(AUTHORIZATION)
    assert calls(command) == [
        f"-zone a b present _acme-challenge.{NAME}. {VALUE}",
        f"-zone a b cleanup _acme-challenge.{NAME}. {VALUE}",
    ]


def test_a_failure_is_one_line_with_the_last_line_of_the_output(command: Path) -> None:
    append(command, "echo first\nprintf 'no such zone\\033[31m\\n\\n' >&2\nexit 3\n")
    with pytest.raises(IssuanceError) as error:
        hook(command).present(AUTHORIZATION)
    assert str(error.value) == (
        f"-acme-dns-hook {command} present: exit code 3: no such zone\\x1b[31m"
    )


def test_a_command_that_is_killed_names_the_signal(command: Path) -> None:
    append(command, "kill -TERM $$\n")
    with pytest.raises(IssuanceError, match="present: killed by signal 15$"):
        hook(command).present(AUTHORIZATION)


def test_a_command_that_hangs_is_ended_with_its_children(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_hook, "TIME_LIMIT_S", 0.5)
    append(command, f"sleep 600 &\necho $! > {command.parent}/child\nwait\n")
    with pytest.raises(IssuanceError, match="present: not done after 0.5 s$"):
        hook(command).present(AUTHORIZATION)
    child = int((command.parent / "child").read_text())
    eventually(lambda: is_dead(child))


def is_dead(pid: int) -> bool:
    try:
        # A container's first process may leave it as a zombie.
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_a_command_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(IssuanceError, match=f"{tmp_path}/no present: No such file or directory$"):
        hook(tmp_path / "no").present(AUTHORIZATION)


def test_a_failed_clean_up_is_a_warning(command: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(command, "exit 1\n")
    with caplog.at_level(logging.WARNING):
        hook(command).clean_up(AUTHORIZATION)
    assert caplog.messages == [
        f"_acme-challenge.{NAME}.: the TXT record may remain: "
        f"-acme-dns-hook {command} cleanup: exit code 1"
    ]


def test_a_program_is_looked_for_before_the_start(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_hook((str(command),))
    monkeypatch.setenv("PATH", str(command.parent))
    check_hook(("hook",))
    os.chmod(command, 0o644)
    with pytest.raises(ConfigError, match="-acme-dns-hook hook: no such program, or not execut"):
        check_hook(("hook",))


def test_the_flag_is_split_as_a_shell_does() -> None:
    assert parse_hook("/bin/hook -z 'a b'") == ("/bin/hook", "-z", "a b")
    with pytest.raises(ValueError, match="no closing quotation; want a command"):
        parse_hook("hook 'a")
