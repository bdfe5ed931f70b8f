"""Refusals of `fastderp-relay` at its start: one line with the cause, and an exit code."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, manual, refused

QUIET = ("-stun=false", "-http-port=-1")
MANUAL = ("-c=/dev/null/k", "-certmode=manual", "-hostname=127.0.0.1", "-certdir=/dev/null/certs")


def one_line(
    flags: tuple[str, ...], exit_code: int, message: str, env: dict[str, str] | None = None
) -> None:
    """Expect a refusal: the exit code, one line with the message, no traceback."""
    code, text = refused(*flags, env=env)
    assert re.search(message, text), text
    assert code == exit_code, text
    assert text.count("\n") == 1, text
    assert text.startswith("fastderp-relay: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("porbe", "https://derp.example.com"), 'unknown subcommand "porbe"; did you mean probe?'),
        (("chekc",), 'unknown subcommand "chekc"; did you mean check?'),
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
            (*MANUAL, "-a", "127.0.0.1:80"),
            "-a and -http-port are both port 80: HTTPS and plain HTTP need a port each",
        ),
        (
            (*MANUAL, "-a", ":8443", "-http-port", "8443", "-reuse-port"),
            "-a and -http-port are both port 8443",
        ),
        (("check", *MANUAL, "-a", ":80"), "-a and -http-port are both port 80"),
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
    "flags",
    [
        ("-dev", "-allow-keys"),
        ("-dev", "-deny-keys"),
        ("-dev", "-rate-config"),
        ("-dev", "-config"),
        ("-a", ":0", "-c"),
        ("-a", ":0", "-c", "k", "-mesh-psk-file"),
        ("-a", ":0", "-c", "k", "-certmode=manual", "-hostname=127.0.0.1", "-certdir"),
    ],
    ids=lambda flags: flags[-1],
)
def test_a_path_with_control_characters_is_escaped_in_the_line_of_an_error(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    flags = tuple(str(tmp_path / "k") if flag == "k" else flag for flag in flags)
    code, text = refused(*QUIET, *flags, "/dev/null/\x1b[31m\nb")
    assert (code, text.count("\n"), "\x1b" in text) == (78, 1, False), text
    assert r"/dev/null/\x1b[31m\nb" in text


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
def test_a_file_without_end_or_without_writer_is_refused(tmp_path: Path, flag: str) -> None:
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


def test_certificate_files_that_are_pipes_are_refused(tmp_path: Path) -> None:
    for ending in ("crt", "key"):
        os.mkfifo(tmp_path / f"relay.example.{ending}")
    flags = ("-a", "127.0.0.1:0", *manual(tmp_path, "relay.example"), "-c", str(tmp_path / "k"))
    one_line((*flags, *QUIET), 78, r"relay\.example\.crt: not a regular file")


def test_a_key_file_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
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


def test_a_malformed_url_of_the_secrets_server_is_refused_without_quoting_it(
    tmp_path: Path,
) -> None:
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
    flags = ("-a", "127.0.0.1:0", *manual(tmp_path, "relay.example"), "-c", str(tmp_path / "k"))
    one_line((*flags, *QUIET), 78, r"relay\.example\.crt does not exist")
    one_line((*flags, "-certdir="), 2, "missing required -certdir")


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
def test_unusable_acme_settings_are_refused(
    tmp_path: Path, flags: tuple[str, ...], exit_code: int, message: str
) -> None:
    ca = ("-acme-directory", "https://127.0.0.1:1/dir", "-certdir", str(tmp_path))
    one_line(
        ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET, *ca, *flags), exit_code, message
    )


def test_a_missing_acme_library_is_named_with_its_install_command(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('acme', 'acme.client'):\n    sys.modules[name] = None\n"
    )
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), "-hostname", "relay.example", *QUIET)
    message = r"certificates from a CA need libraries that are not installed: pip install 'fastderp\[acme\]'"
    one_line(
        (*flags, "-acme-directory", "https://127.0.0.1:1/dir", "-certdir", str(tmp_path)),
        69,
        message,
        {"PYTHONPATH": str(tmp_path)},
    )


def test_a_malformed_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "127.0.0.1.crt").write_text("junk")
    (tmp_path / "127.0.0.1.key").write_text("junk")
    flags = ("-a", "127.0.0.1:0", *manual(tmp_path, "127.0.0.1"))
    one_line((*flags, "-c", str(tmp_path / "k"), *QUIET), 78, r"127\.0\.0\.1\.crt is not a PEM")


def test_a_tcp_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(
            ("-a", f"127.0.0.1:{port}", "-c", str(tmp_path / "k"), *QUIET),
            71,
            rf"127\.0\.0\.1:{port}.*[Aa]ddress already in use; .*: ss -lnpt 'sport = :{port}'$",
        )


def test_a_port_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ("-a", f"127.0.0.1:{taken.getsockname()[1]}", "-reuse-port", *QUIET)
        reason = "already in use by a program without SO_REUSEPORT, or of another user$"
        one_line((*flags, "-c", str(tmp_path / "k")), 71, reason)


def test_a_stun_port_in_use_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        flags = ("-a", "127.0.0.1:0", "-stun-port", str(port), "-c", str(tmp_path / "k"))
        message = rf"STUN: cannot listen on UDP 127\.0\.0\.1:{port}: Address already in use"
        one_line(flags, 71, rf"{message}; .*: ss -lnpu 'sport = :{port}'$")


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    one_line(
        ("-a", "192.0.2.1:0", "-c", str(tmp_path / "k"), *QUIET),
        71,
        "192.0.2.1.*Cannot assign requested address; no interface of this machine has this address$",
    )


def test_a_host_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for helpers in (QUIET, ("-stun-port=0",)):
        flags = ("-a", "no-such-host.invalid:0", "-c", str(tmp_path / "k"), *helpers)
        one_line(flags, 71, r"relay: (STUN: )?cannot listen on no-such-host\.invalid(:0)?: ")


def test_a_malformed_environment_is_refused(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", str(tmp_path / "k"), *QUIET)
    one_line(flags, 78, "TS_DEBUG_TRUSTED_CIDRS", {"TS_DEBUG_TRUSTED_CIDRS": "everyone"})


@pytest.mark.parametrize("limit", [8, 12, 16, 63])
def test_too_few_descriptors_are_one_line(tmp_path: Path, limit: int) -> None:
    script = f'ulimit -n {limit}; exec "{sys.executable}" "{COMMAND}" -a 127.0.0.1:0 -c {tmp_path / "k"} -stun=false'
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 71
    assert (
        done.stderr
        == f"fastderp-relay: {limit} descriptors are allowed, and a relay needs at least 64:"
        " raise `ulimit -n`\n"
    )


def test_more_workers_than_descriptors_are_one_line(tmp_path: Path) -> None:
    options = f"-a 127.0.0.1:0 -c {tmp_path / 'k'} -stun=false -workers 256"
    script = f'ulimit -n 64; exec "{COMMAND}" {options}'
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (
        71,
        "fastderp-relay: no memory or file descriptors left for the worker threads\n",
    )


def test_a_path_that_the_locale_cannot_write_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(
        '[key]\nc = "ünïcode"\n[certificates]\nhostname = "bücher.example"\n', "utf-8"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [COMMAND, "-config", config],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | ascii_only,
    )
    assert done.returncode == 78
    assert done.stderr.endswith(
        "[key] c: the locale has no such characters; start the relay with LC_ALL=C.UTF-8\n"
    )
    assert done.stderr.count("\n") == 1
