"""The command line: Go's flag syntax, derper's flags, one clear line per error."""

import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.cli import config, flag_table, flags
from fastderp.cli.sources import read_settings
from fastderp.errors import EX_USAGE, DerpError, UsageError
from fastderp.server import settings

ENVIRONMENT = {"HOME": "/home/ann"}

TABLE = [
    flags.Flag("a", str, ":443", "", "ADDRESS"),
    flags.Flag("stun", flags.boolean, "true", ""),
    flags.Flag("stun-port", flags.integer, "3478", "", "PORT"),
    flags.Flag("limit", flags.number, "+Inf", ""),
    flags.Flag("timeout", flags.duration, "2s", ""),
]


def values(*arguments: str) -> dict[str, Any]:
    return flags.parse(TABLE, arguments)[0]


def relay(*arguments: str, is_root: bool = False) -> settings.RelaySettings:
    read = read_settings(arguments, ENVIRONMENT)
    return config.relay_settings(read.values, read.given, environment=ENVIRONMENT, is_root=is_root)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-stun-port", "1"),
        ("--stun-port", "1"),
        ("-stun-port=1",),
        ("--stun-port=1",),
        ("-stun-port=0x1",),
    ],
)
def test_one_or_two_dashes_and_a_space_or_an_equals_sign(arguments: tuple[str, ...]) -> None:
    assert values(*arguments)["stun-port"] == 1


def test_absent_flags_have_their_defaults() -> None:
    assert values() == {
        "a": ":443", "stun": True, "stun-port": 3478, "limit": float("inf"), "timeout": 2.0,
    }  # fmt: skip


def test_a_lone_boolean_is_true_and_takes_no_value_from_behind() -> None:
    assert values("-stun=false", "-stun", "-a", ":1") == values("-a", ":1")


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert values("-a", ":1", "--a=:2")["a"] == ":2"


def test_a_value_may_be_empty_contain_equals_or_look_like_a_flag() -> None:
    assert values("-a=")["a"] == ""
    assert values("-a=x=y")["a"] == "x=y"
    assert values("-a", "-stun") == values() | {"a": "-stun"}


def test_given_flags_are_distinguished_from_defaults() -> None:
    assert flags.parse(TABLE, ["-a", ":443"])[1] == {"a"}


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_true_has_gos_spellings(text: str) -> None:
    assert values(f"-stun={text}")["stun"] is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_false_has_gos_spellings(text: str) -> None:
    assert values(f"-stun={text}")["stun"] is False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("2s", 2.0), ("500ms", 0.5), ("10m", 600.0), ("1h30m", 5400.0),
        ("1.5h", 5400.0), (".5s", 0.5),
        ("1.s", 1.0), ("+3s", 3.0), ("-3s", -3.0), ("250us", 250e-6), ("250µs", 250e-6),
        ("7ns", 7e-9), ("1m0s", 60.0),
    ],
)  # fmt: skip
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert flags.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "2 s", "s", "1d", "--1s", "1s2", "1e3s", ".s", "1s,", "٣s"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="want a duration such as"):
        flags.duration(text)


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_and_seconds_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert flags.duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-stunport", "1"], "unknown flag -stunport; did you mean -stun-port?"),
        (["--STUN_PORT=1"], "unknown flag -STUN_PORT; did you mean -stun-port?"),
        (["-xyzzy"], "unknown flag -xyzzy; -help lists them all"),
        (["-\x1b[31m"], "unknown flag -\\x1b[31m; -help lists them all"),
        (["-stun-port", "abc"], 'invalid value "abc" for -stun-port: want a whole number'),
        (["-limit", "abc"], 'invalid value "abc" for -limit: want a number'),
        (["-limit", "٣"], 'invalid value "\\u0663" for -limit: want a number'),
        (["-stun=maybe"], 'invalid value "maybe" for -stun: want true or false'),
        (
            ["-timeout", "5"],
            'invalid value "5" for -timeout: want a duration such as 500ms, 2s, 10m or 1h30m',
        ),
        (["-a"], "-a needs a value: -a ADDRESS"),
        (["-stun", "false"], "-stun takes its value with an equals sign: -stun=false"),
        (["serve"], 'unexpected argument "serve"'),
        (["stun"], 'unexpected argument "stun"; did you mean -stun?'),
        (["---stun"], 'unexpected argument "---stun"'),
        (["-=1"], 'unexpected argument "-=1"'),
        (["-"], 'unexpected argument "-"'),
        (["--", "x"], 'unexpected argument "--"'),
    ],
)
def test_an_error_is_named_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags.parse(TABLE, arguments)
    assert str(caught.value) == message
    assert caught.value.exit_code == EX_USAGE


@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(["-a", "-stun", "--stun-port", "=", "-timeout=1s"]),
        max_size=6,
    )
)
def test_any_command_line_parses_or_is_refused_in_one_line(arguments: list[str]) -> None:
    try:
        flags.parse(TABLE, arguments)
    except UsageError as error:
        assert str(error).isprintable()


def test_dev_means_plain_http_on_3340_with_a_key_in_memory() -> None:
    dev = relay("-dev")
    assert dev.listen == settings.ListenSettings(port=3340, tls=False, http_port=None)
    assert dev.key.file is None
    assert not dev.warnings
    forced = relay("-dev", "-a", ":443")
    assert forced.listen.port == 3340
    assert forced.warnings == ("-dev listens on :3340: -a has no effect",)


def test_a_real_relay_has_derpers_defaults() -> None:
    real = relay("-certmode", "manual", "-hostname", "derp.example.com", is_root=True)
    assert real == settings.RelaySettings(
        key=settings.KeySettings(Path("/var/lib/derper/derper.key")),
        listen=settings.ListenSettings(),
        manual=settings.ManualSettings(
            Path("/home/ann/.cache/tailscale/derper-certs"), "derp.example.com"
        ),
        acme=None,
        admission=settings.AdmissionSettings(recheck_s=36.0),
        mesh=settings.MeshSettings(),
        limits=settings.LimitSettings(),
        stun=settings.StunSettings(),
        bootstrap_dns=settings.BootstrapSettings(),
        pages=settings.PageSettings(hostname="derp.example.com"),
        observe=settings.ObserveSettings(),
    )
    assert real.listen == settings.ListenSettings(
        host="", port=443, tls=True, http_port=80, keepalive_s=600.0, user_timeout_s=15.0,
        accept_per_s=math.inf, accept_burst=2**63 - 1,
    )  # fmt: skip
    assert real.limits == settings.LimitSettings(
        rate_file=None, workers=0, login_memory_bytes=64 << 20, write_timeout_s=2.0, queue_packets=0
    )


def test_the_regions_secret_is_read_from_derpers_paths(tmp_path: Path) -> None:
    secret = tmp_path / "keys" / "derp-mesh.key"
    assert flag_table.default_mesh_psk_file({"HOME": str(tmp_path)}) == ""
    secret.parent.mkdir()
    secret.write_text("00")
    assert flag_table.default_mesh_psk_file({"HOME": str(tmp_path)}) == str(secret)


def test_a_region_is_a_secret_file_and_members() -> None:
    member = relay(
        "-c", "k", "-a", ":80", "-mesh-psk-file", "/k", "-mesh-with", "a.example, b.example"
    )
    assert (member.mesh.psk_file, member.mesh.members) == (Path("/k"), "a.example, b.example")
    assert relay("-dev", "-mesh-psk-file", "/k").mesh.psk_file is None


def test_another_port_without_manual_certificates_serves_plain_http() -> None:
    plain = relay("-a", "127.0.0.1:8080", "-c", "k", "-hostname", "ignored")
    assert not plain.listen.tls
    assert plain.listen.http_port is None
    assert relay("-a", "127.0.0.1:8080", "-c", "k", "-certmode=manual").listen.tls


def test_helpers_can_be_switched_off() -> None:
    quiet = relay("-c", "k", "-certmode=manual", "-http-port", "-1", "-stun=false")
    assert (quiet.listen.http_port, quiet.stun) == (None, None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":443", ("", 443)), ("192.0.2.1:80", ("192.0.2.1", 80)), ("[::1]:3340", ("::1", 3340)),
        ("[::]:0", ("::", 0)),
        ("relay.example:https", ("relay.example", 443)), (":http", ("", 80)),
    ],
)  # fmt: skip
def test_addresses_have_an_optional_host_and_a_port_or_service(
    text: str, address: tuple[str, int]
) -> None:
    assert config.parse_address(text) == address


def test_the_ports_of_http_need_no_etc_services(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: str) -> int:
        raise OSError("service/proto not found")

    monkeypatch.setattr(socket, "getservbyname", absent)
    assert config.parse_address(":https") == ("", 443)
    assert config.parse_address("192.0.2.1:http") == ("192.0.2.1", 80)
    with pytest.raises(UsageError, match='unknown port "ftp"'):
        config.parse_address(":ftp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing port"), ("127.0.0.1", "missing port"), ("[::1]", "missing port"),
        ("::1", "missing port"),
        ("2001:db8::1:443", "in brackets"), (":65536", 'unknown port "65536"'),
        (":", "missing port"),
        (":no-such-service", "unknown port"), (":-1", "unknown port"), (":٣", "unknown port"),
        (":\udcff", "unknown port"),
    ],
)  # fmt: skip
def test_other_addresses_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.parse_address(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-certmode", "magic"], 'unknown -certmode "magic": use manual, letsencrypt, gcp'),
        (["-a", ":80"], "missing required -c FILE"),
        (["-dev", "-stun-port", "65536"], 'invalid value "65536" for -stun-port: want 0 to 65535'),
        (
            ["-c", "k", "-certmode=manual", "-http-port", "-2"],
            'invalid value "-2" for -http-port: want -1 to 65535',
        ),
        (["-dev", "-home", "ftp://x"], 'unknown -home value "ftp://x"'),
        (["-dev", "-home", "http://x\r\nSet-Cookie: y"], "unknown -home value"),
        (["-dev", "-workers", "-1"], 'invalid value "-1" for -workers: want 0 to 256'),
        (
            ["-dev", "-tcp-write-timeout", "-1s"],
            'invalid value "-1s" for -tcp-write-timeout: want 0 to 8760h',
        ),
        (
            ["-dev", "-login-memory", "1MiB"],
            'invalid value "1MiB" for -login-memory: want 4MiB to 64GiB',
        ),
        (["-dev", "-login-memory", "64"], 'invalid value "64" for -login-memory: want a size'),
    ],
)
def test_a_contradictory_combination_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        relay(*arguments)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_certificate_directory_follows_the_users_cache() -> None:
    assert (
        flag_table.default_cert_dir({"XDG_CACHE_HOME": "/c", "HOME": "/h"})
        == "/c/tailscale/derper-certs"
    )
    assert flag_table.default_cert_dir({"HOME": "/h"}) == "/h/.cache/tailscale/derper-certs"


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"XDG_CACHE_HOME": "c", "HOME": "/h"}])
def test_without_a_cache_the_certificate_directory_has_to_be_named(
    environment: dict[str, str],
) -> None:
    # A service of root has no $HOME: its certificates would be kept in its working folder.
    assert flag_table.default_cert_dir(environment) == ""
    read = read_settings(["-c", "k", "-hostname", "derp.example.com"], environment)
    with pytest.raises(UsageError, match="missing required -certdir DIR"):
        config.relay_settings(read.values, read.given, environment=environment, is_root=True)
    secrets = next(
        flag for flag in flag_table.flag_table(environment) if flag.name == "secrets-cache-dir"
    )
    assert Path(secrets.default).is_absolute()


def test_admission_is_open_or_needs_every_check() -> None:
    assert relay("-a", ":1", "-c", "k").admission.is_open
    asked = relay(
        "-a", ":1", "-c", "k", "-verify-clients", "-socket", "/s", "-verify-client-url",
        "https://x/", "-verify-client-url-fail-open=false",
        "--allow-keys", "/a", "--deny-keys", "/d", "--verify-interval", "10s",
    ).admission  # fmt: skip
    assert not asked.is_open
    assert asked == settings.AdmissionSettings(
        True, "/s", "https://x/", False, 10.0, Path("/a"), Path("/d")
    )
    for one in (
        ("-verify-clients",),
        ("-verify-client-url", "http://x"),
        ("-allow-keys", "/a"),
        ("-deny-keys", "/d"),
    ):
        assert not relay("-a", ":1", "-c", "k", *one).admission.is_open


@pytest.mark.parametrize(
    ("text", "names"), [("", ()), ("a", ("a",)), ("a, b,", ("a", " b", "")), (" ", (" ",))]
)
def test_disallowed_app_names_are_split_at_commas_and_taken_literally(
    text: str, names: tuple[str, ...]
) -> None:
    admission = relay("-a", ":1", "-c", "k", "-disallow-app-names", text).admission
    assert admission.disallowed_app_names == names


def test_proxies_are_listed_and_their_headers_need_a_list() -> None:
    flags = ("-trusted-proxies", "10.0.0.0/8, ::1,unix", "-proxy-protocol", "-path-prefix", "/a/b/")
    proxies = relay("-a", ":1", "-c", "k", *flags).listen.proxies
    assert str(proxies.trusted) == "10.0.0.0/8, ::1/128, unix"
    assert proxies.proxy_protocol and proxies.path_prefix == "/a/b"
    assert relay("-a", ":1", "-c", "k").listen.proxies == settings.ProxySettings()


def test_a_unix_socket_and_its_trust_belong_together() -> None:
    both = relay("-a", "unix:/x", "-c", "k", "-trusted-proxies", "unix")
    assert both.listen.host == "unix:/x" and not both.listen.tls and not both.warnings
    assert both.stun == settings.StunSettings("", 3478)
    [warning] = relay("-a", "unix:/x", "-c", "k").warnings
    assert "add -trusted-proxies unix" in warning
    [warning] = relay("-a", ":1", "-c", "k", "-trusted-proxies", "unix").warnings
    assert "no effect without -a unix:PATH" in warning
    [warning] = relay(
        "-a", "unix:/x", "-c", "k", "-trusted-proxies", "unix", "-reuse-port"
    ).warnings
    assert warning == "two relays cannot share a unix socket: -reuse-port has no effect on -a"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("-trusted-proxies", "10.0.0.1/8"), "10.0.0.1/8 has host bits set; want networks"),
        (
            ("-trusted-proxies", "proxy.example.com"),
            "'proxy.example.com' does not appear to be an IPv4 or IPv6 network; want networks such "
            "as 10.0.0.0/8, addresses, or unix",
        ),
        (("-proxy-protocol",), "-proxy-protocol needs -trusted-proxies"),
        (("-a", "unix:relay.sock"), 'invalid address "unix:relay.sock" for -a: want unix: and an'),
        (("-a", "unix:/" + "x" * 107), "absolute path of up to 107 bytes"),
        (("-a", "unix:/x", "-certmode", "manual"), "-a unix: is for proxies on this machine"),
        (("-path-prefix", "relay"), '-path-prefix "relay": want a path such as'),
        (("-path-prefix", "/a//b"), '-path-prefix "/a//b": want a path such as'),
        (("-path-prefix", "/<b>"), '-path-prefix "/<b>": want a path such as'),
    ],
)
def test_proxies_that_make_no_sense_are_refused(flags: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        relay("-a", ":1", "-c", "k", *flags)
    assert complaint in str(refusal.value)


NUMBERS = [
    # flag, accepted value, refused value, expected text
    ("stun-port", ["0", "65535"], ["-1", "65536"], "0 to 65535"),
    ("http-port", ["-1", "65535"], ["-2", "65536"], "-1 to 65535"),
    ("workers", ["0", "256"], ["-1", "257", "9" * 400], "0 to 256"),
    ("drain-time", ["0", "1h"], ["-1ns", "1h1s", "2h"], "0 to 1h"),
    ("tcp-write-timeout", ["0", "8760h"], ["-1ns", "8760h1s", "9999999h"], "0 to 8760h"),
    ("tcp-user-timeout", ["0", "596h"], ["-1ms", "596h1ms", "600h"], "0 to 596h"),
    ("tcp-keepalive-time", ["0", "32767s"], ["-1s", "32768s", "10h"], "0 to 32767s"),
    ("verify-interval", ["0", "10ms", "8760h"], ["1ns", "-1s", "8761h"], "0 or 10ms to 8760h"),
    ("accept-connection-limit", ["0", "1e300", "+Inf"], ["-0.1", "-Inf", "NaN"], "0 or more"),
    ("accept-connection-burst", ["0", str(2**63 - 1)], ["-1", str(2**63)], f"0 to {2**63 - 1}"),
    ("connections-per-address", ["0", "1000000"], ["-1", "1000001"], "0 to 1000000"),
    ("logins-per-address", ["0", "0.1", "1e6"], ["-1", "1000001", "+Inf", "NaN"], "0 to 1000000"),
    ("logins-per-address-burst", ["1", "1000000"], ["0", "1000001"], "1 to 1000000"),
]


def test_every_flag_with_a_number_has_bounds() -> None:
    numeric = {
        flag.name
        for flag in flag_table.flag_table({})
        if flag.read in (flags.integer, flags.number, flags.duration)
    }
    assert numeric == {name for name, *_ in NUMBERS}


@pytest.mark.parametrize(
    ("name", "accepted", "refused", "wanted"), NUMBERS, ids=lambda value: str(value)[:24]
)
def test_a_number_beyond_its_bounds_is_refused_with_the_flag_and_its_bounds(
    name: str, accepted: list[str], refused: list[str], wanted: str
) -> None:
    for text in accepted:
        relay("-dev", f"-{name}={text}")
    for text in refused:
        with pytest.raises(UsageError) as caught:
            relay("-dev", f"-{name}={text}")
        assert f" for -{name}: want " in str(caught.value)
        if len(text) < 100:
            assert str(caught.value) == f'invalid value "{text}" for -{name}: want {wanted}'


def test_an_unreadable_default_path_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", stat)
    assert flag_table.default_mesh_psk_file({"HOME": "/root"}) == ""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        (":9090", settings.Address("", 9090)),
        ("127.0.0.1:0", settings.Address("127.0.0.1", 0)),
        ("[::1]:9090", settings.Address("::1", 9090)),
        ("unix:/run/debug.sock", settings.Address("unix:/run/debug.sock")),
    ],
)
def test_the_address_of_the_debug_pages_is_written_as_that_of_the_relay(
    text: str, address: settings.Address | None
) -> None:
    assert relay("-dev", "-debug-addr", text).listen.debug == address


def test_the_address_of_stun_is_that_of_the_relay_unless_it_has_one() -> None:
    assert relay("-a", "192.0.2.1:80", "-c", "k", "-stun-port", "7").stun == settings.StunSettings(
        "192.0.2.1", 7
    )
    assert relay(
        "-a", "192.0.2.1:80", "-c", "k", "-stun-addr", "[2001:db8::1]:9"
    ).stun == settings.StunSettings("2001:db8::1", 9)
    for text in ("3478", "[::1]", "unix:/x:y", "192.0.2.1:70000"):
        with pytest.raises(UsageError, match="for -stun-addr: "):
            relay("-dev", "-stun-addr", text)


def listed_values(name: str) -> tuple[str, ...]:
    """Return the values that the error of a flag with an unknown one lists, if any."""
    try:
        relay("-c", "relay.key", "-certdir", "certs", f"-{name}=nonsense")
    except DerpError as error:
        found = re.fullmatch(rf'unknown -{name} "nonsense": use (.*)', str(error))
        return tuple(found[1].split(", ")) if found else ()
    return ()


@pytest.mark.parametrize("flag", flag_table.flag_table({}), ids=lambda flag: flag.name)
def test_the_table_has_the_values_of_flags_that_take_a_few_words(flag: flags.Flag) -> None:
    assert flag.choices == listed_values(flag.name)
    assert not flag.choices or flag.default in flag.choices
