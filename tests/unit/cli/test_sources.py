"""Flags, then variables, then the file, then defaults; one clear line per error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastderp.cli.config import relay_settings
from fastderp.cli.flag_table import SECTIONS, flag_table
from fastderp.cli.flags import Flag
from fastderp.cli.sources import read_settings, variable_of
from fastderp.errors import ConfigError, DerpError

FLAGS = [flag for flag in flag_table({}) if flag.section]


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    return str(path)


def test_flags_override_variables_and_these_the_file_and_this_the_defaults(
    tmp_path: Path,
) -> None:
    path = config(tmp_path, "[limits]\nworkers = 3\n[listen]\nstun-port = 5\nhttp-port = 6\n")
    environment = {"FASTDERP_WORKERS": "4", "FASTDERP_STUN_PORT": "7", "FASTDERP_CONFIG": path}
    read = read_settings(["-workers", "5"], environment)
    chosen = {
        name: (read.values[name], read.origins[name])
        for name in ("workers", "stun-port", "http-port", "a")
    }
    assert chosen == {
        "workers": (5, "-workers"),
        "stun-port": (7, "$FASTDERP_STUN_PORT"),
        "http-port": (6, f"{path} [listen]"),
        "a": (":443", "default"),
    }
    assert read.given == {"workers", "stun-port", "http-port", "config"}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_can_be_given_by_a_variable_and_in_the_file(flag: Flag, tmp_path: Path) -> None:
    text = flag.default
    variable = read_settings([], {variable_of(flag): text or "x"})
    assert variable.origins[flag.name] == f"${variable_of(flag)}"
    quoted = text if flag.is_boolean else f'"{text}"'
    path = config(tmp_path, f"[{flag.section}]\n{flag.name} = {quoted}\n")
    in_file = read_settings(["-config", path], {})
    assert in_file.values[flag.name] == flag.read(text)
    assert in_file.origins[flag.name] == f"{path} [{flag.section}]"


def test_an_empty_variable_counts_as_unset() -> None:
    assert read_settings([], {"FASTDERP_WORKERS": ""}).origins["workers"] == "default"


def test_numbers_booleans_and_lists_have_tomls_own_forms(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        "[listen]\nstun = false\n[limits]\nworkers = 2\naccept-connection-limit = inf\n"
        'tcp-write-timeout = "1m30s"\n[mesh]\nmesh-with = ["a.example", "b.example"]\n',
    )
    values = read_settings(["-config", path], {}).values
    assert (values["stun"], values["workers"], values["tcp-write-timeout"]) == (False, 2, 90.0)
    assert values["accept-connection-limit"] == float("inf")
    assert values["mesh-with"] == "a.example,b.example"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[listen]\nstun-prot = 1\n", "[listen] stun-prot: unknown key; did you mean stun-port?"),
        ("[listen]\nworkers = 1\n", "[listen] workers: belongs in [limits]"),
        ("workers = 1\n", "workers belongs in [limits]"),
        ("wrokers = 1\n", "wrokers: unknown key; did you mean workers?"),
        ("[lisen]\na = ':1'\n", "unknown section [lisen]; did you mean listen?"),
        ("listen = 3\n", "listen is a section: write [listen]"),
        ("[listen]\nstun = 'no'\n", "[listen] stun: want true or false"),
        ("[listen]\na = 443\n", "[listen] a: want a string"),
        ("[limits]\nworkers = true\n", "[limits] workers: want a number"),
        ("[limits]\nworkers = []\n", "[limits] workers: want a number"),
        ("[limits]\nworkers = 300\n", '[limits] workers: invalid value "300": want 0 to 256'),
        ("[limits]\ntcp-write-timeout = 5\n", "want a duration such as 500ms"),
        ("[mesh]\nmesh-with = [1]\n", "[mesh] mesh-with: want a string or a list of strings"),
        ('[key]\nc = "a\\u0000"\n', "[key] c: a path has no character NUL"),
        ("[listen\n", "not TOML: Expected ']'"),
        ("[listen]\na = ':1'\na = ':2'\n", "not TOML: Cannot overwrite a value"),
        ("[listen]\n\x1b = 1\n", "not TOML: "),
        ("a" * (2 << 20), "larger than 1 MiB"),
        ("[other]\nconfig = 'x'\n", "unknown section [other]"),
    ],
)  # fmt: skip
def test_an_error_in_the_file_is_one_line_that_names_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_settings(["-config", path], {})
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"-config {path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [None, b"\xff\xfe[listen]"])
def test_a_missing_or_binary_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "relay.toml"
    if content is not None:
        path.write_bytes(content)
    for unusable in (path, tmp_path):
        with pytest.raises(ConfigError, match=f"^-config {unusable}: "):
            read_settings(["-config", str(unusable)], {})


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "FASTDERP_WORKER",
            r"\$FASTDERP_WORKER: unknown variable; did you mean FASTDERP_WORKERS\?",
        ),
        ("FASTDERP_VERSION", r"\$FASTDERP_VERSION: unknown variable"),
        ("FASTDERP_WORKERS", r'\$FASTDERP_WORKERS: invalid value "many": want a whole number'),
        ("FASTDERP_STUN", r'\$FASTDERP_STUN: invalid value "many": want true or false'),
    ],
)  # fmt: skip
def test_a_malformed_variable_is_named(variable: str, message: str) -> None:
    with pytest.raises(DerpError, match=message) as caught:
        read_settings([], {variable: "many"})
    assert caught.value.exit_code == 78


def kubernetes_variables(service: str, protocol: str, port: int) -> dict[str, str]:
    """Return what Kubernetes sets in every container of a namespace that has this service."""
    name, link = service.upper().replace("-", "_"), f"{protocol}://10.0.0.1:{port}"
    number = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": "10.0.0.1",
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTPS": str(port),
        f"{name}_PORT": link,
        number: link,
        f"{number}_PROTO": protocol,
        f"{number}_PORT": str(port),
        f"{number}_ADDR": "10.0.0.1",
    }


@pytest.mark.parametrize(
    "service", ["fastderp", "fastderp-0", "fastderp-http", "fastderp-stun", "derp"]
)
def test_variables_of_kubernetes_services_are_no_settings(service: str) -> None:
    environment = kubernetes_variables(service, "udp", 3478)
    assert read_settings([], environment).given == set()
    own = {"FASTDERP_STUN_PORT": "7", "FASTDERP_HTTP_PORT": "8"}
    read = read_settings([], environment | own)
    assert (read.values["stun-port"], read.values["http-port"]) == (7, 8)
    with pytest.raises(ConfigError, match=r"\$FASTDERP_WORKER: unknown variable"):
        read_settings([], environment | {"FASTDERP_WORKER": "1"})


def test_the_version_is_printed_with_any_configuration_file() -> None:
    assert read_settings(["-version"], {"FASTDERP_CONFIG": "/none"}).values["version"]


def test_every_section_has_a_key() -> None:
    assert {flag.section for flag in FLAGS} == set(SECTIONS)


def test_the_file_in_the_operators_guide_is_valid(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    [text] = re.findall(r"^```toml\n(.*?)^```$", guide, re.M | re.S)
    read = read_settings(["-config", config(tmp_path, text)], {})
    assert read.values["hostname"] == "derp.example.com"
    settings = relay_settings(read.values, read.given, environment={}, is_root=False)
    assert settings.mesh.members == "derp1.example.com,derp2.example.com"


def test_variables_of_the_build_and_the_workflows_are_no_settings() -> None:
    root = Path(__file__).parents[3]
    files = [root / "setup.py", *(root / ".github").rglob("*.yml")]
    names = {name for file in files for name in re.findall(r"\bFASTDERP_\w+", file.read_text())}
    assert {"FASTDERP_FREE_THREADING", "FASTDERP_EXTENSIONS"} <= names
    for text in ("", "1"):  # a workflow sets empty ones, too
        assert read_settings([], dict.fromkeys(names, text)).given == set()
