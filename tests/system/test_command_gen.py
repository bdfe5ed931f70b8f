"""`fastderp-relay gen`: what it prints is accepted by systemd, the shells, and the relay."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastderp.cli.command import SUBCOMMANDS
from fastderp.cli.flag_table import flag_table
from tests.kit.command import COMMAND, refused
from tests.kit.shell import SHELLS, typed
from tests.system.test_units import UNITS, analyze, has_offline_analysis

FLAGS = [flag for flag in flag_table({}) if flag.group]


def gen(*arguments: str) -> str:
    """Return what the command prints on standard output."""
    done = subprocess.run(
        [COMMAND, "gen", *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"needs {request.param}")
    return str(request.param)


@pytest.fixture
def script(shell: str, tmp_path: Path) -> Path:
    path = tmp_path / f"completion.{shell}"
    path.write_text(gen("completion", shell))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    (path / "certs").mkdir(parents=True)
    (path / "my relay.toml").touch()
    return path


# What is typed, up to Return, and the arguments of the command.
TYPED = {
    "-dev -accept-connection-b\t 3": ["-dev", "-accept-connection-burst", "3"],
    "-certmode le\t": ["-certmode", "letsencrypt"],
    "-certmode=m\t": ["-certmode=manual"],
    "-stun=f\t": ["-stun=false"],
    "-config my\t": ["-config", "my relay.toml"],
    "-config=my\t": ["-config=my relay.toml"],
    "-http-port -1 -config my\t": ["-http-port", "-1", "-config", "my relay.toml"],
    "-acme-dns-hook fastderp-re\t": ["-acme-dns-hook", "fastderp-relay"],
    "-hostname m\t": ["-hostname", "m"],
    "che\t -certmode g\t": ["check", "-certmode", "gcp"],
    "gen gr\t": ["gen", "grafana"],
    "gen comp\t zs\t": ["gen", "completion", "zsh"],
    "gen systemd so\t": ["gen", "systemd", "socket"],
    "probe -cert-n\t x": ["probe", "-cert-name", "x"],
    "probe -json -cafile my\t": ["probe", "-json", "-cafile", "my relay.toml"],
}


@pytest.mark.parametrize("keys", TYPED, ids=repr)
def test_a_tab_completes_the_word(keys: str, shell: str, script: Path, folder: Path) -> None:
    got = typed(shell, "fastderp-relay", script, f"fastderp-relay {keys}", folder)
    # zsh joins a flag and its value by "="; shells differ in the space after a completed word.
    assert [word for word in got if word] == TYPED[keys]


def test_a_tab_completes_directories(shell: str, script: Path, folder: Path) -> None:
    (folder / "certs.txt").touch()
    got = typed(shell, "fastderp-relay", script, "fastderp-relay -certdir ce\t", folder)
    assert [word.rstrip("/") for word in got] == ["-certdir", "certs"]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_flags_with_two_dashes_are_completed_by_bash(tmp_path: Path, folder: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(gen("completion", "bash"))
    got = typed("bash", "fastderp-relay", script, "fastderp-relay --certmo\tle\t", folder)
    assert got == ["--certmode", "letsencrypt"]


def completions(shell: str, script: Path, line: str) -> set[str]:
    """Return what a shell offers at the end of a line."""
    if shell == "fish":
        program = f"source {script}; complete -C '{line}'"
        command = ["fish", "--no-config", "-c", program]
    else:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        program = (
            f"source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            "_fastderp_relay; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        command = ["bash", "--norc", "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return {row.partition("\t")[0] for row in shown.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "fish"], indirect=True)
def test_every_flag_and_subcommand_is_offered(shell: str, script: Path) -> None:
    flags = {
        offered.removesuffix("=false") for offered in completions(shell, script, "fastderp-relay -")
    }
    assert flags == {f"-{flag.name}" for flag in FLAGS}
    assert completions(shell, script, "fastderp-relay check -dev -") >= {"-c", "-stun=false"}
    assert completions(shell, script, "fastderp-relay ") == {"check", *SUBCOMMANDS}
    assert completions(shell, script, "fastderp-relay gen -") <= {""}
    assert completions(shell, script, "fastderp-relay probe -") >= {"-4", "-cafile", "-json"}


def test_the_shell_finds_no_fault_in_the_script(shell: str, script: Path) -> None:
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_finds_the_script_among_its_functions(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "_fastderp-relay").write_text(gen("completion", "zsh"))
    script = tmp_path / "setup"
    script.write_text(f"fpath=({tmp_path}/functions $fpath)\ncompinit -D\n")
    got = typed("zsh", "fastderp-relay", script, "fastderp-relay -certmode le\t", folder)
    assert got == ["-certmode", "letsencrypt"]


@pytest.mark.skipif(
    not has_offline_analysis(), reason="needs systemd-analyze of systemd 250 or later"
)
def test_systemd_accepts_the_printed_units(tmp_path: Path) -> None:
    for path in UNITS:
        (tmp_path / path.name).write_text(gen("systemd", path.suffix.removeprefix(".")))
    done = analyze("verify", "--man=no", *(str(tmp_path / path.name) for path in UNITS))
    told = [line for line in done.stderr.splitlines() if "fastderp" in line]
    assert (done.returncode, told) == (0, [])


def test_the_unit_names_the_command_that_printed_it(tmp_path: Path) -> None:
    [start] = re.findall(r"^ExecStart=(\S+) -c ", gen("systemd"), re.M)
    assert start == str(COMMAND)
    link = tmp_path / "fastderp-relay"
    link.symlink_to(COMMAND)
    printed = subprocess.run([link, "gen", "systemd"], capture_output=True, text=True, check=True)
    assert f"\nExecStart={link} -c " in printed.stdout


def test_the_relay_accepts_the_printed_configuration(tmp_path: Path) -> None:
    text = gen("config")
    path = tmp_path / "relay.toml"
    checks = []
    for content in ("", text, re.sub(r"^#(?! )", "", text, flags=re.M)):
        path.write_text(content)
        code, said = refused("check", "-c", str(tmp_path / "key"), "-config", str(path))
        checks.append((code, re.findall(r"^[ *] (\S+ +.*?)  \S.*$", said, re.M)))
    assert len(checks[0][1]) == len([flag for flag in FLAGS if flag.section])
    assert checks[0] == checks[1] == checks[2]


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
@pytest.mark.parametrize("command", ["relay", "bench"])
def test_groff_sets_the_manual_pages_with_all_their_texts(command: str) -> None:
    # -c marks bold by overstriking; lines of 4000 columns are not broken.
    setting = ["groff", "-man", "-Tutf8", "-P-c", "-ww", "-rLL=4000n"]
    done = subprocess.run(
        setting, input=gen("man", command), capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    page = re.sub(".\b", "", done.stdout).replace("\N{MINUS SIGN}", "-")
    if command == "bench":
        assert "  --scenario NAME " in page
        return
    for flag in FLAGS:
        assert re.search(rf"^ +-{flag.name}\b", page, re.M), flag.name
        assert flag.help.replace("`", "") in page


def test_the_dashboard_is_json() -> None:
    assert json.loads(gen("grafana"))["panels"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing name: use systemd, completion, config, grafana or man"),
        (
            ("prometheus",),
            'unknown name "prometheus": use systemd, completion, config, grafana or man',
        ),
        (("completion",), "missing variant of completion: use bash, zsh or fish"),
        (("completion", "csh"), 'unknown variant of completion "csh": use bash, zsh or fish'),
        (("systemd", "timer"), 'unknown variant of systemd "timer": use service or socket'),
        (("config", "yaml"), 'unexpected argument "yaml" after config'),
        (("systemd", "socket", "x"), "unrecognized arguments: x; see -help"),
        (("-dev",), "unrecognized arguments: -dev; see -help"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_line_with_the_possible_ones(
    arguments: tuple[str, ...], said: str
) -> None:
    assert refused("gen", *arguments) == (2, f"fastderp-relay gen: {said}\n")


@pytest.mark.parametrize("flag", ["-help", "--help", "-h"])
def test_the_help_names_everything_that_can_be_printed(flag: str) -> None:
    said = gen(flag)
    for words in ("systemd [service|socket]", "completion bash|zsh|fish", "config", "grafana"):
        assert f"  {words}\n" in said
    assert max(map(len, said.splitlines())) <= 80


def test_output_that_cannot_be_written_is_reported() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, "gen", "config"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert done.returncode == 74
    assert done.stderr == (
        "fastderp-relay gen: cannot write to standard output: No space left on device\n"
    )
