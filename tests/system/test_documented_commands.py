"""Every command and every block of the documents is run by a test, or listed here with the reason.

A command is a line of a block of shell commands, or a span of code that begins with the name of a
program. A new one fails `test_every_command_is_listed` until `HOW` has an entry for it.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from fastderp import NodePrivate
from tests.kit.command import COMMAND, manual, relay
from tests.kit.sandbox import needs_root

ROOT = Path(__file__).parents[2]
GENERATED = {"api.md", "bench.md", "flags.md", "metrics.md"}
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "bench", "crypto", "deploy")
    for path in (ROOT / folder).glob("*.md" if folder != "docs" else "**/*.md")
    if path.name not in GENERATED
)
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
# what makes a span of code a command
PROGRAM = re.compile(
    r"(?:[A-Z_]{3,}=\S+ |CC=(?:'[^']*'|\S+) )?"
    r"(?:\.ci/run|apt|bench/\S+\.py|cargo|docker|fastderp-bench|fastderp-relay|git|helm|kill|kubectl|openssl|perf|pip"
    r"|pipx|pytest|python3?|sha256sum|sudo|sysctl|systemctl|tailscale) "
)

# What runs a command: a test, a part of `.ci/run`, or one of these.
BENCH = "test_the_options_of_the_benches_exist"
PYTEST = "test_the_tests_that_are_run_exist"
PARTS = "test_the_parts_of_ci_exist"
FLAGS = "tests/system/test_operations_commands.py::test_every_flag_of_the_guide_exists"
RELAY = "test_the_relay_starts_as_documented"
TAKE_OVER = (
    "tests/system/test_operations_commands.py::"
    "test_the_commands_that_take_over_from_derper_keep_its_key"
)
NOT_RUN = {
    "changes the machine": "installs programs of the system, or files outside the checkout",
    "takes minutes": "`.ci/run` runs the same program, once, with other arguments",
    "needs perf": "a profiler of the machine's kernel",
    "needs others": "a program or a service of others: tailscaled, a registry, a container engine",
}
HOW = [
    (r"pip install \. && fastderp-relay --dev", ".ci/run packages"),
    (r"pip install -e '\.\[test\]' && pytest", ".ci/run tests"),
    (r"sudo python3 -m venv /opt/fastderp( && .*)?", "changes the machine"),
    (r"sudo /opt/fastderp/bin/pip install .*", "changes the machine"),
    (r"sudo ln -s /opt/fastderp/.*", "changes the machine"),
    (r"sudo fastderp-relay -c .*", RELAY),
    (r"sudo install -d -m 700 /var/lib/fastderp|sudo cp (-r )?/var/lib/derper/.*", TAKE_OVER),
    (r"python3 -m venv \.venv && .*|pip install -e '\.\[test,dev\]'", ".ci/run style"),
    (r"(CC=.* )?python setup\.py build_ext --inplace", ".ci/run regressions"),
    (r"FASTDERP_CHECKED=address .*|LD_PRELOAD=.* pytest \S+", ".ci/run sanitizers"),
    (r"fastderp-relay --dev( & RELAY=.*)?", ".ci/run packages"),
    (r"sleep \d|kill \$RELAY", ".ci/run packages"),
    (r"(fastderp-bench .* & )?perf .*", "needs perf"),
    (r"fastderp-relay( check| -version| -help)", "test_the_words_of_the_relay_work"),
    (r"fastderp-relay probe( .*)?", "tests/system/test_command_probe.py"),
    (r"fastderp-relay gen( .*)?", "tests/system/test_command_gen.py"),
    (r"fastderp-relay top( .*)?", "tests/system/test_command_top.py"),
    (r"fastderp-bench .*", BENCH),
    (r"(FASTDERP_\w+=\S+ )?(python (-m )?)?bench[./].*", BENCH),
    (r"(FASTDERP_\w+=\S+ )?pytest .*", PYTEST),
    (r"\.ci/run .*", PARTS),
    (r"python \.ci/bench_history\.py table .*", "tests/unit/bench/test_history.py"),
    (r"python docs/\w+\.py.*", "test_the_programs_of_the_documents_run"),
    (r"python crypto/build_crypto\.py .*", ".ci/run crypto"),
    (r"FASTDERP_CRYPTO_SOURCE=\S+ pip wheel .*", "test_the_pinned_crate_is_documented"),
    (
        r"pip install( (cmake|fastderp|--upgrade fastderp|'fastderp\[all\]'))?",
        "changes the machine",
    ),
    (r"pip install -e '\.\[bench\]'|apt install .*|sysctl .*", "changes the machine"),
    (r"pip install aiohttp uvicorn websockets pytest-asyncio", ".ci/run tests"),
    (r"(DERP_\w+=\S+ )*docker .*|helm .*|kubectl .*", "needs others"),
    (r"openssl (rand|speed) .*|cargo info .*|tailscale .*", "needs others"),
]

# Blocks in other languages: what reads them.
BLOCKS = {
    ("README.md", "python"): "tests/system/test_readme.py",
    ("README.md", "json"): "tests/system/test_readme.py",
    ("docs/library.md", "python"): "tests/system/test_docs_examples.py",
    ("docs/library.md", "text"): "tests/system/test_docs_examples.py",
    ("docs/operations.md", "toml"): "tests/system/test_operations_commands.py",
    ("docs/operations.md", "json"): "tests/system/test_readme.py",
    ("docs/operations.md", "console"): "tests/system/test_operations_commands.py",
    ("docs/operations.md", "nginx"): "tests/system/test_behind_proxies.py",
    ("docs/operations.md", "haproxy"): "tests/system/test_behind_proxies.py",
    ("docs/operations.md", "caddy"): "tests/system/test_behind_proxies.py",
    ("docs/operations.md", "text"): "test_the_reload_lines_are_those_of_the_relay",
    ("docs/operations.md", "yaml"): "test_the_probes_are_those_of_the_chart",
}
# Drawings and examples of bytes, without a language.
DRAWN = {"README.md", "docs/architecture.md", "docs/index.md", "docs/protocol.md", "docs/style.md"}


class Command(NamedTuple):
    """A command of a document, on one line and without its comment."""

    document: str
    text: str


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def spans(text: str) -> list[str]:
    prose = FENCE.sub("", text)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


@cache
def commands() -> tuple[Command, ...]:
    """Return the commands of all documents."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for language, block in FENCE.findall(text):
            if language == "sh":
                lines = re.sub(r" *\\\n *", " ", block).splitlines()
                found += [Command(name(path), re.sub(r"\s+# .*", "", line)) for line in lines]
        found += [Command(name(path), span) for span in spans(text) if PROGRAM.match(span)]
    return tuple(dict.fromkeys(found))


def how(command: Command) -> str:
    """Return what runs a command, or the reason why nothing does."""
    return next((how for pattern, how in HOW if re.fullmatch(pattern, command.text)), "")


def run_by(runner: str) -> list[Command]:
    found = [command for command in commands() if how(command) == runner]
    assert found
    return found


def test_every_command_is_listed() -> None:
    assert len(commands()) > 80
    assert [command for command in commands() if not how(command)] == []


def test_every_entry_of_the_list_has_a_command() -> None:
    used = {
        next((pattern for pattern, _ in HOW if re.fullmatch(pattern, command.text)), "")
        for command in commands()
    }
    assert [pattern for pattern, _ in HOW if pattern not in used] == []


def test_every_block_is_listed() -> None:
    blocks = {
        (name(path), language)
        for path in DOCUMENTS
        for language, _ in FENCE.findall(path.read_text())
        if language != "sh"
    }
    drawn = {document for document, language in blocks if language in ("", "{toctree}")}
    assert drawn == DRAWN
    assert {block for block in blocks if block[1] not in ("", "{toctree}")} == set(BLOCKS)


def test_what_the_lists_name_exists() -> None:
    parts = parts_of_ci()
    for runner in {*(how for _, how in HOW), *BLOCKS.values()}:
        path, _, test = runner.partition("::")
        if path.endswith(".py"):
            source = (ROOT / path).read_text()
            assert re.search(rf"def {test or 'test_'}", source), runner
        elif runner.startswith(".ci/run"):
            assert runner.removeprefix(".ci/run ") in parts, runner
        else:
            assert runner in NOT_RUN or callable(globals().get(runner)), runner


def parts_of_ci() -> set[str]:
    script = (ROOT / ".ci" / "run").read_text()
    return set(re.findall(r"^(\w+)\(\) \{", script, re.M)) & set(
        re.findall(r"\w+", script.partition("everything | ")[2].partition(")")[0])
    )


def test_the_parts_of_ci_exist() -> None:
    for command in run_by(PARTS):
        assert command.text.split()[1] in parts_of_ci(), command


def test_the_tests_that_are_run_exist() -> None:
    for command in run_by(PYTEST):
        words = shlex.split(command.text.partition("pytest ")[2])
        for word in words:
            if word.startswith(("tests", "bench")):
                assert (ROOT / word).exists(), command
        if "-k" in words:
            assert f"{words[words.index('-k') + 1]}" in (ROOT / words[0]).read_text(), command
        if "-m" in words:
            markers = re.findall(r"\w+", words[words.index("-m") + 1])
            known = (ROOT / "pyproject.toml").read_text()
            assert all(
                f'"{marker}: ' in known for marker in markers if marker not in ("not", "and")
            )


@cache
def help_of(*program: str) -> str:
    done = subprocess.run(
        [*program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("command", sorted({command.text for command in run_by(BENCH)}))
def test_the_options_of_the_benches_exist(command: str) -> None:
    words = shlex.split(re.sub(r"^FASTDERP_\w+=\S+ ", "", command))
    match words:
        case ["python", "-m", module, *arguments]:
            said = help_of(sys.executable, "-m", module)
        case ["fastderp-bench", *arguments]:
            said = help_of(str(COMMAND.with_name("fastderp-bench")))
        case ["python", path, *arguments] | [path, *arguments]:
            said = help_of(sys.executable, path)
    for argument in arguments:
        if re.match(r"--?[a-z]", argument):
            assert re.search(rf"(?<![\w-]){argument}\b", said), argument
        elif "bench.goals" in words and re.match(r"[a-z]+", argument):
            assert argument in said, argument


@pytest.mark.parametrize("command", [["-version"], ["-help"], ["check", "-dev"]], ids=" ".join)
def test_the_words_of_the_relay_work(command: list[str]) -> None:
    done = subprocess.run([COMMAND, *command], capture_output=True, text=True, timeout=30)
    assert (done.returncode, bool(done.stdout), done.stderr) == (0, True, "")


@pytest.mark.parametrize("program", ["docs/count_house.py", "docs/trace_login.py"])
def test_the_programs_of_the_documents_run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, bool(done.stdout), done.stderr) == (0, True, "")


def test_the_pinned_crate_is_documented() -> None:
    [command] = {command.text for command in run_by("test_the_pinned_crate_is_documented")}
    pinned = re.search(r'aws-lc-sys = "=(.*)"', (ROOT / "crypto" / "Cargo.toml").read_text())
    assert pinned and f"crypto/aws-lc-sys-{pinned[1]}.crate " in command


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("command", dict.fromkeys(command.text for command in run_by(RELAY)))
def test_the_relay_starts_as_documented(command: str) -> None:
    """In mounts and a network of its own: it serves the ports 443, 80 and 3478."""
    script = f"""
        ip link set lo up
        mount -t tmpfs tmpfs /var/lib
        PATH={COMMAND.parent}:$PATH
        exec {command.removeprefix("sudo ")}
    """
    running = subprocess.Popen(
        ["unshare", "--mount", "--net", "/bin/sh", "-ec", script], stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    said = ""
    try:
        for line in running.stderr:
            said += line
            if "STUN on UDP 3478" in line:
                break
    finally:
        running.send_signal(signal.SIGINT)
        said += running.communicate(timeout=30)[1]
    assert running.returncode == 0, said
    assert re.search(r"serves https on \S*:443[,;]", said)
    assert re.search(r"plain HTTP on \S*:80\b", said)


def test_the_reload_lines_are_those_of_the_relay(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    [block] = [block for language, block in FENCE.findall(guide) if language == "text"]
    rates, keys, psk, members = (tmp_path / n for n in ("rates.json", "keys", "psk", "members"))
    keys.write_text(NodePrivate.generate().public_key.text + "\n")
    rates.write_text("{}")
    psk.write_text("5" * 64)
    psk.chmod(0o600)
    members.write_text("a.test\n")
    configuration = tmp_path / "relay.toml"
    configuration.write_text("")
    port, certificate = "-a=127.0.0.1:0", [f"-certdir={tmp_path}/certs", "-hostname=192.0.2.1"]
    with relay(
        port, "-stun=false", "-http-port=-1", f"-c={tmp_path}/key", "-certmode=manual", *certificate,
        f"-allow-keys={keys}", f"-rate-config={rates}", f"-mesh-psk-file={psk}",
        f"-mesh-with=@{members}", f"-config={configuration}",
    ) as running:  # fmt: skip
        rates.write_text('{"PerClientRateLimitBytesPerSec": 1000000 "Classes": []}')
        running.process.send_signal(signal.SIGHUP)
        for _ in range(5):
            running.hears("reload: ")
        members.write_text("a.test\nb.test\n")
        running.hears("files changed: mesh: ")
        configuration.write_text('[limits]\ndrain-time = "1s"\n[serve]\nhome = "blank"\n')
        running.hears("files changed: configuration: ")
        said = {shape(line) for line in running.said.splitlines()}
    assert {shape(line) for line in block.splitlines()} <= said


def shape(line: str) -> str:
    """Return a line of the log without its values."""
    line = re.sub(r"/\S+\.(json|toml)", "FILE", line)
    line = re.sub(r"certificate: (new|unchanged): certificate for \S+,", "certificate:", line)
    return re.sub(r"\d+", "N", line)


def yaml_block(part: str) -> str:
    """Return the block of the operators' guide with this text."""
    guide = (ROOT / "docs" / "operations.md").read_text()
    blocks: list[str] = [
        text for language, text in FENCE.findall(guide) if language == "yaml" and part in text
    ]
    [block] = blocks
    return block


def test_prometheus_finds_the_metrics_where_the_guide_says(tmp_path: Path) -> None:
    scrape = yaml_block("scrape_configs:")
    [target] = re.findall(r'targets: \["(\S+)"\]', scrape)
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert "metrics_path" not in scrape and f"`-debug-addr {target}`" in guide
    flags = ("-a", "127.0.0.1:0", "-http-port=0", "-stun=false", "-c", str(tmp_path / "k"))
    with relay(*flags, *manual(tmp_path, "127.0.0.1"), "-debug-addr=127.0.0.1:0") as running:
        assert_metrics(running.find(r"debug on 127\.0\.0\.1:(\d+)"))
    with relay(*flags, *manual(tmp_path, "127.0.0.1")) as running:
        assert_metrics(running.find(r"plain HTTP on 127\.0\.0\.1:(\d+)"))


def assert_metrics(port: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        assert b"\nderp_accepts 0\n" in page.read()


def test_the_probes_are_those_of_the_chart() -> None:
    block = yaml_block("Probe:")
    chart = (ROOT / "deploy" / "chart" / "templates" / "statefulset.yaml").read_text()
    shown = dict(re.findall(r"^(\w+Probe):\n  httpGet: {path: (\S+),", block, re.M))
    assert shown == dict(re.findall(r"(\w+Probe):\n +httpGet: {path: (\S+),", chart))
    assert set(shown) == {"readinessProbe", "livenessProbe"}
