"""`fastderp-bench` as a process, against the bench's floor relay and without any relay."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.relays import Relay, Running, build_floor, fastderp, running, running_region
from fastderp.loadgen.process import Process
from tests.kit.command import relay as fastderp_relay
from tests.kit.compiler import has_c_compiler
from tests.kit.relay import eventually

COMMAND = str(Path(sys.executable).with_name("fastderp-bench"))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if not has_c_compiler():
        pytest.skip("no C compiler for the floor relay")
    program = build_floor(tmp_path_factory.mktemp("floor"))
    with running(Relay("floor", "", [str(program), "{port}"])) as target:
        yield target


QUICK = ("--no-box-check", "--duration", "0.2", "--warmup", "0.1", "--quiet")


def test_a_run_prints_delivered_packets_and_their_cost(relay: Running) -> None:
    done = bench(relay.url, *QUICK, "--pid", str(relay.pid), "--verify")
    assert done.returncode == 0, done.stderr
    for words in ("packets/s", "lost", "p99.9", "per delivered packet", "relay memory"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("flags", "n_flows"),
    [
        (["--pairs", "3", "--window", "4"], 3),
        (["--shape", "fan-in", "--pairs", "5", "--size", "100:1,900:1"], 5),
        (["--shape", "fan-out", "--pairs", "5", "--rate", "5000"], 5),
        (["--shape", "all-to-all", "--pairs", "4", "--window", "1", "--idle", "20"], 12),
    ],
    ids=["pairs", "fan-in", "fan-out", "all-to-all"],
)
def test_json_has_the_whole_result(relay: Running, flags: list[str], n_flows: int) -> None:
    done = bench(relay.url, *QUICK, *flags, "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    result = document["result"]
    assert document["environment"]["command"][0] == "fastderp-bench"
    assert result["sent"] > n_flows
    assert result["lost"] == result["corrupt"] == result["connections_lost"] == 0
    assert result["latency"]["p50_us"] <= result["latency"]["p99_us"] <= result["latency"]["max_us"]


def test_clients_log_in_during_the_measurement_and_from_several_addresses(relay: Running) -> None:
    done = bench(
        relay.url,
        *QUICK,
        "--pid",
        str(relay.pid),
        "--storm",
        "30",
        "--settle",
        "0.5",
        "--json",
        "-",
        "--source",
        "127.0.0.2",
        "--source",
        "127.0.0.3",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["storm_logins_per_s"] > 0
    assert result["connections_lost"] == 0
    assert result["relay"]["rss_settled_kib"] > 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_receivers_log_in_at_another_relay_of_the_region(tls: bool) -> None:
    with running_region(fastderp(), tls=tls) as here:
        assert here.neighbour is not None
        done = bench(
            here.url,
            "--to",
            here.neighbour.url,
            "--insecure",
            "--pairs",
            "2",
            "--idle",
            "1",
            "--duration",
            "1",
            "--quiet",
            *(word for pid in here.pids for word in ("--pid", str(pid))),
            "--json",
            "-",
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"]["delivered"] > 0
        neighbour = here.neighbour

        def are_counted() -> bool:
            page = neighbour.page("/debug/varz")
            counters = dict(re.findall(r"^derp_(\w+) (\d+)$", page, re.MULTILINE))
            return int(counters["packets_forwarded_in"]) == int(counters["packets_sent"]) > 0

        eventually(are_counted)  # a packet is counted after it was written


def test_a_source_that_is_not_ours_is_named(relay: Running) -> None:
    done = bench(relay.url, *QUICK, "--source", "192.0.2.1")
    assert done.returncode == 69
    assert "assign" in done.stderr


def test_a_scenario_is_read_from_a_file(relay: Running, tmp_path: Path) -> None:
    file = tmp_path / "few.toml"
    file.write_text("n = 2\nwindow = 1\n")
    done = bench(relay.url, *QUICK, "--scenario-file", str(file), "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["scenario"]["name"] == "few"


def test_json_goes_to_a_file_and_the_table_to_the_terminal(relay: Running, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = bench(relay.url, *QUICK, "--json", str(file))
    assert json.loads(file.read_text())["result"]["delivered"] > 0
    assert "packets/s" in done.stdout


def test_a_result_that_cannot_be_written_is_still_shown(relay: Running) -> None:
    done = bench(relay.url, *QUICK, "--json", "/dev/full")
    assert done.returncode == 74
    assert done.stderr == "fastderp-bench: --json /dev/full: No space left on device\n"
    assert "packets/s" in done.stdout


def test_a_run_that_fails_leaves_the_previous_result(relay: Running, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("the result of before, which is longer" * 1000)
    before = file.read_text()
    assert bench(relay.url, *QUICK, "--pid", "4194303", "--json", str(file)).returncode == 69
    assert file.read_text() == before
    assert bench(relay.url, *QUICK, "--json", str(file)).returncode == 0
    assert json.loads(file.read_text())["result"]["delivered"] > 0


def test_a_relay_that_may_not_know_the_keys_is_named_as_a_cause(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(f"nodekey:{'11' * 32}\n")
    flags = (
        "-a",
        "127.0.0.1:0",
        "-stun=false",
        "-c",
        str(tmp_path / "k"),
        "-allow-keys",
        str(allowed),
    )
    with fastderp_relay(*flags) as closed:
        done = bench(f"http://127.0.0.1:{closed.port}", *QUICK)
    assert done.returncode == 69
    assert "closed the connection; the benchmark uses new keys" in done.stderr


def test_the_exit_codes_are_listed() -> None:
    done = bench("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  (\d+)  ", done.stdout, re.MULTILINE)
    assert [int(code) for code in listed] == [0, 1, 2, 69, 71, 74, 130]


def test_the_scenarios_are_listed() -> None:
    done = bench("--list")
    assert done.returncode == 0
    assert "pairs-10" in done.stdout
    assert "never-wait" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "see --help"),
        ([], "URL of the relay"),
        (["http://127.0.0.1:1", "--bogus"], "see --help"),
        (["http://127.0.0.1:99999"], "http://127.0.0.1:99999: not a URL with host and port"),
        (["http://127.0.0.1:0"], "port must not be 0"),
        (["http://["], "http://[: not a URL with host and port"),
        (
            ["http://127.0.0.1:1", "--window", "0"],
            "--window 0: must be at least 1; for no limit use --never-wait",
        ),
        (
            ["http://127.0.0.1:1", "--rate", "0"],
            "--rate 0: must be 1 to 1e+09; for no limit use --never-wait",
        ),
        (["http://127.0.0.1:1", "--rate", "nan"], "--rate nan: must be 1 to 1e+09"),
        (["http://127.0.0.1:1", "--source", "foo"], "--source foo: not an IP address"),
        (
            ["http://127.0.0.1:1", "--scenario-file", "/nosuch"],
            "--scenario-file /nosuch: No such file or directory",
        ),
        (
            ["http://127.0.0.1:1", "--scenario-file", "/bin/sh"],
            "--scenario-file /bin/sh: not a text in UTF-8",
        ),
        (
            ["http://127.0.0.1:1", "--json", "/nosuch/result"],
            "--json /nosuch/result: No such file or directory",
        ),
        (
            ["https://127.0.0.1:1", "--cafile", "/nosuch"],
            "--cafile /nosuch: no usable certificates in /nosuch: No such file",
        ),
        (["http://a..b"], "a..b is no host name: each of its parts has 1 to 63 letters"),
        (["relay.example"], "http://"),
        (["http://127.0.0.1:1", "--scenario", "nope"], "no such scenario"),
        (["http://127.0.0.1:1", "--slow", "11"], "slow must be between 0 and 10"),
        (["http://127.0.0.1:1", "--size", "20"], "32 to 65536"),
        (["http://127.0.0.1:1", "--size", "big"], "'big'"),
        (["http://127.0.0.1:1", "--pairs", "0"], "--pairs 0: must be at least 1"),
        (["http://127.0.0.1:1", "--idle", "-1"], "--idle -1: must be at least 0"),
        (["http://127.0.0.1:1", "--in-a-row", "0"], "--in-a-row 0: must be at least 1"),
        (["http://127.0.0.1:1", "--pairs", "9" * 20], "n must be at most 1000000"),
        (["http://127.0.0.1:1", "--window", "9" * 20], "window must be at most 1000000"),
        (["http://127.0.0.1:1", "--in-a-row", "9" * 20], "in_a_row must be at most 1000000"),
        (["http://127.0.0.1:1", "--storm-rate", "nan"], "storm_rate must be 0 to 1e+09"),
        (["http://127.0.0.1:1", "--rate", "1e300"], "--rate 1e+300: must be 1 to 1e+09"),
        (["http://127.0.0.1:1", "--warmup", "inf"], "cannot warm up inf s"),
        (["http://127.0.0.1:1", "--warmup", "1e12"], "cannot warm up 1e+12 s"),
        (
            ["http://127.0.0.1:1", "--duration", "1e300"],
            "and measure 1e+300 s; the most is 604800 s",
        ),
        (["http://127.0.0.1:1", "--settle", "1e12"], "the most is 604800 s"),
        (["http://127.0.0.1:1", "--cpu", "-1"], "--cpu -1: no such core"),
        (["http://127.0.0.1:1", "--cpu", str(1 << 80)], "no such core"),
        (["http://127.0.0.1:1", "--settle", "nan"], "cannot wait nan s"),
        (["http://127.0.0.1:1", "--cpu", "4000"], "no such core"),
        (["http://127.0.0.1:1", "--rate", "-5"], "rate"),
        (["http://127.0.0.1:1", "--duration", "0"], "measure 0 s"),
        (["https://127.0.0.1:1", "--suite", "TLS_NO_SUCH"], "TLS_NO_SUCH"),
    ],
)
def test_a_wrong_flag_is_one_clear_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("fastderp-bench: ")
    assert words in line


def test_flags_may_have_one_dash() -> None:
    assert "exit codes:" in bench("-help").stdout
    done = bench("http://127.0.0.1:1", "-pairs", "0", "-json=-")
    assert done.stderr == "fastderp-bench: --pairs 0: must be at least 1\n"


def test_no_relay_is_exit_code_69_and_names_the_relay() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = bench(url)
    assert done.returncode == 69
    assert url in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_no_relay_is_named_with_its_answer(relay: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        load = subprocess.Popen([COMMAND, url, "--pairs", "1"], stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
            _, errors = load.communicate(timeout=30)
    assert load.returncode == 69
    assert "404 Not Found" in errors
    assert "Traceback" not in errors


def test_a_pid_without_a_process_is_refused(relay: Running) -> None:
    done = bench(relay.url, *QUICK, "--pid", "4194303")
    assert done.returncode == 69
    assert "no process 4194303" in done.stderr


def test_a_relay_that_is_killed_is_exit_code_1(tmp_path: Path) -> None:
    if not has_c_compiler():
        pytest.skip("no C compiler for the floor relay")
    program = build_floor(tmp_path)
    with running(Relay("floor", "", [str(program), "{port}"])) as target:
        load = subprocess.Popen(
            [COMMAND, target.url, "--no-box-check", "--duration", "20", "--json", "-"],
            stdout=subprocess.PIPE,
            text=True,
        )
        _wait_for_traffic(target.pid)
    output, _ = load.communicate(timeout=30)
    assert load.returncode == 1
    assert json.loads(output)["result"]["connections_lost"] == 20


def _wait_for_traffic(pid: int) -> None:
    process = Process(pid)
    wanted_s = process.cpu_s() + 0.2
    while process.cpu_s() < wanted_s:
        time.sleep(0.01)


def test_an_interrupt_ends_a_run_without_a_traceback(relay: Running) -> None:
    load = subprocess.Popen(
        [COMMAND, relay.url, "--no-box-check", "--duration", "60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_traffic(relay.pid)
    load.send_signal(signal.SIGINT)
    _, errors = load.communicate(timeout=30)
    assert load.returncode == 130
    assert errors == ""
