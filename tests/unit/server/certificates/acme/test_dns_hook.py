"""The command that sets DNS records for a CA (RFC 8555 §8.4)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from fastderp.errors import ConfigError, IssuanceError
from fastderp.server.certificates.acme import dns_hook
from fastderp.server.certificates.acme.dns_hook import DnsHook, check_hook, parse_hook
from fastderp.util.children import reap_orphans
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


def test_the_exit_code_counts_while_process_1_waits_for_orphans(command: Path) -> None:
    append(command, "exit 3\n")
    ended = threading.Event()

    def reap() -> None:
        while not ended.is_set():
            reap_orphans()

    with ThreadPoolExecutor() as threads:
        threads.submit(reap)
        try:
            with pytest.raises(IssuanceError, match="present: exit code 3"):
                hook(command).present(NAME, AUTHORIZATION)
        finally:
            ended.set()


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("action", ["present", "cleanup"])
def test_a_signal_that_kills_the_relay_ends_the_command_with_its_children(
    command: Path, number: signal.Signals, action: str
) -> None:
    append(command, f'if [ "$1" = {action} ]; then\n{HANG}\nfi\n')
    tied = command.parent / "tied"
    program = f"""
from pathlib import Path
from fastderp.server.certificates.acme import dns_hook
tie = dns_hook._end_with_relay
def observed(process, line):
    tie(process, line)
    if {action!r} in process.args:
        Path({str(tied)!r}).touch()
dns_hook._end_with_relay = observed
hook = dns_hook.DnsHook(({str(command)!r},))
hook.present({NAME!r}, "")
hook.clean_up({NAME!r}, "")
"""
    with subprocess.Popen([sys.executable, "-c", program]) as relay:
        eventually(lambda: tied.exists() and (command.parent / "child").exists())
        relay.send_signal(number)
    child = int((command.parent / "child").read_text())
    eventually(lambda: is_dead(child))


def test_a_process_that_the_command_leaves_behind_goes_on(command: Path) -> None:
    append(command, f"sleep 600 >/dev/null 2>&1 &\necho $! > {command.parent}/child\n")
    hook(command).present(NAME, AUTHORIZATION)
    child = int((command.parent / "child").read_text())
    # A signal would be pending now, or has ended it.
    status = Path(f"/proc/{child}/status").read_text()
    os.kill(child, signal.SIGKILL)
    assert "State:\tZ" not in status
    assert re.findall(r"(?m)^(?:SigPnd|ShdPnd):\s+(\w+)", status) == ["0" * 16, "0" * 16]


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
