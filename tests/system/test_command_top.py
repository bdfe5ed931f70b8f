"""`fastderp-relay top` beside a real relay: snapshots in a pipe, and the live view."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.cli import top as top_command
from tests.kit.command import COMMAND, RunningRelay, manual, relay
from tests.kit.peer import Peer
from tests.kit.ports import free_ports
from tests.kit.screen import Screen, on_screen
from tests.system.test_lean_install import lean

__all__ = ["lean"]  # a fixture

QUIET = ("-stun=false", "-http-port=-1", "-drain-time", "0")
LEAVES_SCREEN = b"\x1b[?1049l"


@contextlib.contextmanager
def plain_relay(directory: Path, port: int = 0, **env: str) -> Iterator[RunningRelay]:
    flags = ("-a", f"127.0.0.1:{port}", "-c", str(directory / "relay.key"), *QUIET)
    with relay(*flags, env=env) as running:
        yield running


@contextlib.contextmanager
def talking(running: RunningRelay) -> Iterator[tuple[Peer, Peer]]:
    """Two clients, one of which sends 20 packets of 1,000 bytes in a second to the other."""
    key = running.public_key
    ended = threading.Event()

    def talk() -> None:
        while not ended.wait(0.05):
            ann.send_packet(bob.public, bytes(1000))
            bob.read_packet()

    with Peer.connect("127.0.0.1", running.port, None, 20) as ann:
        with Peer.connect("127.0.0.1", running.port, None, 20) as bob:
            ann.login(key, json=b'{"version":2,"AppName":"ann"}')
            bob.login(key, json=b'{"version":2,"AppName":"bob"}')
            talker = threading.Thread(target=talk)
            talker.start()
            try:
                yield ann, bob
            finally:
                ended.set()
                talker.join()


def url_of(running: RunningRelay) -> str:
    return f"http://127.0.0.1:{running.port}"


def top(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "top", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )


@contextlib.contextmanager
def live(
    url: str, *flags: str, columns: int = 80, lines: int = 24, env: dict[str, str] | None = None
) -> Iterator[Screen]:
    """The live view, updated five times a second, after its first screen."""
    command = [str(COMMAND), "top", "-interval", "0.2", *flags, url]
    with on_screen(command, columns, lines, env) as screen:
        screen.shows("q quit")
        yield screen


def refusal(*arguments: str, **env: str) -> tuple[int, str]:
    """Run a command that fails; return its exit code and its line."""
    done = top("-interval", "0.1", *arguments, **env)
    [line] = done.stderr.splitlines()
    assert done.stdout == ""
    return done.returncode, line.removeprefix("fastderp-relay top: ")


# Snapshots


@pytest.mark.parametrize("columns", [80, 140])
def test_a_pipe_gets_one_snapshot_with_rates(tmp_path: Path, columns: int) -> None:
    with plain_relay(tmp_path) as running, talking(running) as (ann, bob):
        port = ann.sock.getsockname()[1]
        done = top("-interval", "1", url_of(running), COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert re.search(r"^clients +2 ", done.stdout, re.M)
    assert re.search(r"^in +[12]?\d(\.\d)? packets/s +[12]?\d\.\d+ kB/s", done.stdout, re.M)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("[")}
    assert rows.keys() == {ann.public.short, bob.public.short}
    assert re.search(rf" 127\.0\.0\.1:{port} +ann ", rows[ann.public.short])


def test_a_snapshot_has_the_rows_and_the_order_of_its_flags(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running, talking(running) as (ann, bob):
        for sort, first in (("in", ann), ("out", bob), ("app", ann)):
            flags = ("-interval", "0.5", "-n", "1", f"-sort={sort}")
            done = top(*flags, url_of(running))
            while re.search(r"^in +0 packets/s", done.stdout, re.M):
                # The clients, which had to wait for a core, are alike.
                done = top(*flags, url_of(running))
            rows = [line for line in done.stdout.splitlines() if line.startswith("[")]
            assert [row.split()[0] for row in rows] == [first.public.short]
            assert "1 of 2 clients" in done.stdout


def test_a_snapshot_needs_no_extra_and_the_live_view_names_its_own(
    tmp_path: Path, lean: dict[str, str]
) -> None:
    with plain_relay(tmp_path) as running:
        assert top("-interval", "0.1", url_of(running), **lean).returncode == 0
        with on_screen([str(COMMAND), "top", url_of(running)], env=lean) as screen:
            assert screen.end() == 69
    assert b"need libraries that are not installed: pip install 'fastderp[top]'" in screen.output
    assert LEAVES_SCREEN not in screen.output


def test_a_dumb_terminal_gets_a_snapshot(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running:
        command = [str(COMMAND), "top", "-interval", "0.1", url_of(running)]
        with on_screen(command, env={"TERM": "dumb"}) as screen:
            assert screen.end() == 0
    assert b"clients  0" in screen.output and b"\x1b" not in screen.output


def test_a_relay_with_a_certificate_is_asked_by_its_name(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    roots = str(tmp_path / "derp.crt")
    with relay(*flags, *manual(tmp_path, "127.0.0.1")) as running:
        (tmp_path / "127.0.0.1.crt").rename(roots)
        url = f"https://127.0.0.1:{running.port}"
        assert top("-interval", "0.1", "-cafile", roots, url).returncode == 0
        code, line = refusal(url)
        assert code == 69 and line.endswith("; see -cafile and -cert-name")
        code, line = refusal("-cafile", roots, "-cert-name", "derp.example.com", url)
        assert code == 69 and "derp.example.com" in line


def test_a_refused_access_says_what_to_do_and_the_key_opens(tmp_path: Path) -> None:
    key = tmp_path / "debug.key"
    key.write_text("open sesame\n")
    path = tmp_path / "relay.sock"
    flags = ("-a", f"unix:{path}", "-c", str(tmp_path / "k"), "-trusted-proxies", "unix", *QUIET)
    with relay(*flags, env={"TS_DEBUG_KEY_PATH": str(key)}):
        code, line = refusal(f"unix:{path}")
        assert code == 69
        for way in ("-debug-addr", "run this on its machine", "tailscale", "-debug-key-file"):
            assert way in line
        for arguments, env in (
            (["-debug-key-file", str(key)], {}),
            ([], {"TS_DEBUG_KEY_PATH": str(key)}),
        ):
            assert top("-interval", "0.1", *arguments, f"unix:{path}", **env).returncode == 0


def test_errors_are_one_line_with_the_code_of_their_cause(tmp_path: Path) -> None:
    [port] = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"
    assert refusal(nowhere) == (69, f"{nowhere}: connection refused")
    assert refusal(f"unix:{tmp_path}/no") == (69, f"unix:{tmp_path}/no: no such socket")
    assert refusal("ftp://a")[0] == 2
    assert refusal("-n", "0", nowhere) == (2, "-n 0: must be at least 1")
    assert refusal("-interval", "soon", nowhere)[0] == 2
    assert refusal("-speed=9") == (
        2,
        "unrecognized arguments: -speed=9; see fastderp-relay top -help",
    )
    missing = str(tmp_path / "no")
    assert refusal("-debug-key-file", missing, nowhere) == (
        78,
        f"-debug-key-file {missing}: No such file or directory",
    )
    assert refusal("-cafile", missing, nowhere.replace("http", "https")) == (
        78,
        f"-cafile {missing}: No such file or directory",
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html>\n",
    ],
    ids=["ssh", "404", "html"],
)
def test_another_server_is_no_traceback(answer: bytes) -> None:
    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        code, line = refusal(f"127.0.0.1:{listener.getsockname()[1]}")
        server.join()
    assert code == 69 and "relay" in line


def test_the_help_fits_a_terminal_and_explains_every_exit_code() -> None:
    done = top("-help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert top("--help", COLUMNS="80").stdout == done.stdout


def test_a_relay_with_a_listener_for_debug_pages_is_found_there(tmp_path: Path) -> None:
    path = tmp_path / "d"
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    with relay(*flags, "-debug-addr", f"unix:{path}") as running:
        done = top("-interval", "0.1", FASTDERP_DEBUG_ADDR=f"unix:{path}", COLUMNS="200")
        assert (done.returncode, done.stderr) == (0, "")
        assert f", at unix:{path} " in done.stdout
        code, line = refusal(url_of(running))
        assert code == 69 and line.endswith("at another address (-debug-addr)")


def test_without_a_relay_the_error_names_every_address_that_was_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(top_command, "DEFAULT_ADDRESSES", ("unix:/nowhere/debug.sock",))
    monkeypatch.setenv("FASTDERP_DEBUG_ADDR", "unix:/nowhere/own.sock")
    assert top_command.main(["-once"]) == 69
    expected = "no relay at unix:/nowhere/own.sock, unix:/nowhere/debug.sock; give its address\n"
    assert capsys.readouterr().err.endswith(expected)


def test_an_address_beyond_ascii_is_shown_in_every_locale(tmp_path: Path) -> None:
    path = tmp_path / "ü"
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with relay(*flags, "-debug-addr", f"unix:{path}"):
        done = top("-interval", "0.1", f"unix:{path}", COLUMNS="200", **ascii_only)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        with live(f"unix:{path}", env=ascii_only) as screen:
            screen.press("q")
            assert screen.end() == 0
        assert screen.output.isascii()


# The live view


def test_the_live_view_shows_traffic_and_ends_with_q(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running, talking(running) as (ann, _):
        with live(url_of(running)) as screen:
            text = screen.shows(
                lambda text: bool(re.search(r"in +\d+(\.\d)? packets/s", text) and "ann" in text)
            )
            assert ann.public.short in text
            assert len(text.splitlines()) == 24
            screen.press("q")
            assert screen.end() == 0
    assert screen.output.count(LEAVES_SCREEN) == 1


def test_a_key_changes_the_order(tmp_path: Path) -> None:
    def first(text: str) -> str:
        return next((line[:7] for line in text.splitlines() if line.startswith("[")), "")

    with plain_relay(tmp_path) as running, talking(running) as (ann, bob):
        with live(url_of(running)) as screen:
            for key, peer in (("o", bob), ("i", ann), ("o", bob)):
                screen.press(key)
                screen.shows(lambda text: first(text) == peer.public.short)


def test_a_resize_draws_at_once_in_the_new_size(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running:
        with live(url_of(running), "-interval", "60") as screen:
            for columns, lines in ((140, 40), (30, 8), (1, 1), (80, 24)):
                screen.resize(columns, lines)
                text = screen.shows(bool)
                assert [len(line) for line in text.splitlines()] == [columns] * lines
            screen.press("q")
            assert screen.end() == 0


@pytest.mark.parametrize(
    ("how", "code"),
    [("q", 0), ("\x03", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["q", "Ctrl-C", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_restored_at_every_end(
    tmp_path: Path, how: str | signal.Signals, code: int
) -> None:
    with plain_relay(tmp_path) as running:
        command = [str(COMMAND), "top", "-interval", "0.2", url_of(running)]
        with on_screen(command) as screen:
            before = screen.settings
            screen.shows("q quit")
            assert screen.settings != before
            if isinstance(how, signal.Signals):
                screen.process.send_signal(how)
            else:
                screen.press(how)
            assert screen.end() == code
            assert screen.settings == before
    assert screen.output.endswith((LEAVES_SCREEN + b"\x1b[?25h", b"\x1b[?25h" + LEAVES_SCREEN))


def test_it_ends_at_once_while_the_relay_does_not_answer(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running:
        with live(url_of(running)) as screen:
            running.process.send_signal(signal.SIGSTOP)
            try:
                screen.press("o")
                screen.press("q")
                assert screen.end() == 0
            finally:
                running.process.send_signal(signal.SIGCONT)


def test_ctrl_z_gives_the_terminal_back_until_the_shell_continues_it(tmp_path: Path) -> None:
    with plain_relay(tmp_path) as running:
        # bash with job control: it reports the stopped job, then continues it.
        script = f'set -m; "{COMMAND}" top -interval 0.2 {url_of(running)}; echo stopped $?; fg'
        with on_screen(["bash", "-c", script]) as screen:
            before = screen.settings
            screen.shows("q quit")
            screen.press("\x1a")
            screen.shows(lambda _: b"stopped 148" in screen.output)
            assert LEAVES_SCREEN in screen.output.partition(b"stopped")[0]
            screen.shows(
                lambda _: b"q" in screen.output.partition(b"stopped")[2] and "q quit" in screen.text
            )
            screen.press("q")
            assert screen.end() == 0
            assert screen.settings == before


def test_a_relay_that_restarts_is_followed(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with plain_relay(tmp_path, port) as running, live(url_of(running)) as screen:
        screen.shows("0/s")
        assert running.stop(signal.SIGINT)[0] == 0
        screen.shows("connection refused; figures of ")
        with plain_relay(tmp_path, port) as again, talking(again) as (ann, _):
            text = screen.shows(lambda text: ann.public.short in text and "refused;" not in text)
            assert "-1" not in text
            screen.press("q")
            assert screen.end() == 0
    assert b"Traceback" not in screen.output


@pytest.mark.parametrize(
    "env",
    [
        {"NO_COLOR": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "200", "LINES": "9"},
    ],
    ids=["NO_COLOR", "ASCII", "COLUMNS"],
)
def test_the_live_view_works_in_other_environments(tmp_path: Path, env: dict[str, str]) -> None:
    [port] = free_ports(1)
    with plain_relay(tmp_path, port) as running, live(url_of(running), env=env) as screen:
        running.stop(signal.SIGINT)
        text = screen.shows("connection refused")
        assert [len(line) for line in text.splitlines()] == [80] * 24
        assert screen.output.isascii()
        has_colours = bool(re.search(rb"\x1b\[[0-9;]*3[0-7]m", screen.output))
        assert has_colours is ("NO_COLOR" not in env)
