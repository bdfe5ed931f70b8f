"""The command that sets DNS records for a CA (RFC 8555 §8.4)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    return DnsHook((str(command), *arguments))


def append(command: Path, text: str) -> None:
    command.write_text(command.read_text() + text)


def calls(command: Path) -> list[str]:
    return (command.parent / "calls").read_text().splitlines()


def test_the_command_gets_the_action_the_record_and_its_value(command: Path) -> None:
    ours = hook(command, "-zone", "a b")
    ours.present(NAME, AUTHORIZATION)
    ours.clean_up(NAME, AUTHORIZATION)
    assert calls(command) == [
        f"-zone a b present _acme-challenge.{NAME}. {VALUE}",
        f"-zone a b cleanup _acme-challenge.{NAME}. {VALUE}",
    ]


def test_a_failure_is_one_line_with_the_last_line_of_the_output(command: Path) -> None:
    append(command, "echo first\nprintf 'no such zone\\033[31m\\n\\n' >&2\nexit 3\n")
    with pytest.raises(IssuanceError) as error:
        hook(command).present(NAME, AUTHORIZATION)
    assert str(error.value) == (
        f"-acme-dns-hook {command} present: exit code 3: no such zone\\x1b[31m"
    )


def test_a_command_that_is_killed_names_the_signal(command: Path) -> None:
    append(command, "kill -TERM $$\n")
    with pytest.raises(IssuanceError, match="present: killed by signal 15$"):
        hook(command).present(NAME, AUTHORIZATION)


def test_a_command_that_hangs_is_ended_with_its_children(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_hook, "TIME_LIMIT_S", 0.5)
    append(command, f"sleep 600 &\necho $! > {command.parent}/child\nwait\n")
    with pytest.raises(IssuanceError, match="present: not done after 0.5 s$"):
        hook(command).present(NAME, AUTHORIZATION)
    child = int((command.parent / "child").read_text())
    eventually(lambda: is_dead(child))


@contextlib.contextmanager
def presenting(ours: DnsHook, command: Path) -> Iterator[Future[None]]:
    """Have another thread add a record, as an order does, while the block runs."""
    with ThreadPoolExecutor(1) as pool:
        order = pool.submit(ours.present, NAME, AUTHORIZATION)
        eventually((command.parent / "child").exists)
        yield order


# `child` appears with its content.
HANG = 'sleep 600 & echo $! > "$0.pid"; mv "$0.pid" "${0%/*}/child"; wait'


@pytest.mark.parametrize("deaf", [False, True])
def test_at_the_end_of_the_relay_the_command_is_ended_and_the_record_removed(
    command: Path, monkeypatch: pytest.MonkeyPatch, *, deaf: bool
) -> None:
    monkeypatch.setattr(dns_hook, "GRACE_S", 0.3 if deaf else 60.0)
    trap = "trap '' TERM\n" if deaf else ""
    append(command, f'if [ "$1" = present ]; then\n{trap}{HANG}\nfi\n')
    ours = hook(command)
    with presenting(ours, command) as order:
        ours.close()
        with pytest.raises(IssuanceError, match="present: ended, because the relay is stopping$"):
            order.result(10)
    assert [call.split()[0] for call in calls(command)] == ["present", "cleanup"]
    child = int((command.parent / "child").read_text())
    eventually(lambda: is_dead(child))
    ours.clean_up(NAME, AUTHORIZATION)
    with pytest.raises(IssuanceError, match="^the relay is stopping$"):
        ours.present(NAME, AUTHORIZATION)
    assert len(calls(command)) == 2


def test_at_the_end_of_the_relay_a_record_is_removed_while_the_ca_validates(command: Path) -> None:
    ours = hook(command)
    ours.present(NAME, AUTHORIZATION)
    ours.close()
    ours.clean_up(NAME, AUTHORIZATION)
    assert [call.split()[0] for call in calls(command)] == ["present", "cleanup"]


def test_a_record_that_is_not_removed_in_time_is_a_warning_and_the_relay_ends(
    command: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dns_hook, "CLOSE_LIMIT_S", 2.0)  # the shell has started by then
    append(command, f'if [ "$1" = cleanup ]; then\n{HANG}\nfi\n')
    ours = hook(command)
    ours.present(NAME, AUTHORIZATION)
    with caplog.at_level(logging.WARNING):
        ours.close()
    assert caplog.messages == [
        f"_acme-challenge.{NAME}.: the TXT record may remain: "
        f"-acme-dns-hook {command} cleanup: not done when the relay ended"
    ]
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
        hook(tmp_path / "no").present(NAME, AUTHORIZATION)


def test_a_failed_clean_up_is_a_warning(command: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(command, "exit 1\n")
    ours = hook(command)
    with pytest.raises(IssuanceError):
        ours.present(NAME, AUTHORIZATION)
    with caplog.at_level(logging.WARNING):
        ours.clean_up(NAME, AUTHORIZATION)
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
