"""`fastderp-relay -log-format json`: each line of standard error is one JSON object."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastderp.wire.keys import NodePrivate, NodePublic
from tests.kit.command import RunningRelay, log_in, refused, relay, started
from tests.kit.peer import SEND, Peer, frame, upgrade_request
from tests.kit.ports import free_ports
from tests.system.test_readme import OPERATIONS, blocks

ROOT = Path(__file__).parents[2]
FLAGS = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")
JSON = ("-log-format", "json")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LEVELS = {"debug", "info", "warning", "error"}
# A relay with an error in its maintenance, and what Python's own modules report meanwhile.
WITH_AN_ERROR = """
import asyncio, sys, threading, warnings
from fastderp.cli.relay import main
from fastderp.server.observe import maintenance
from fastderp.server.observe.connection_log import ConnectionLog
maintenance.INTERVAL_S = 0.01
def fail(self):
    del ConnectionLog.sum_up
    asyncio.get_running_loop().call_exception_handler({"message": "of the loop\\nand more"})
    warnings.warn("of a\\nwarning", RuntimeWarning)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    class Raises:
        def __del__(self):
            raise KeyError("of\\nan object")
    Raises()
    raise ValueError("one\\ntwo")
ConnectionLog.sum_up = fail
sys.exit(main())
"""
# A relay whose start fails by an error of its own.
BROKEN = """
import sys
from fastderp.cli.relay import main
from fastderp.server.app import RelayApp
async def start(self):
    raise ValueError("one\\ntwo")
RelayApp.start = start
sys.exit(main())
"""


def records(lines: list[str]) -> list[dict[str, Any]]:
    """Parse lines of a log; check the members that each has."""
    found = [json.loads(line) for line in lines]
    for line, record in zip(lines, found, strict=True):
        assert line.isascii() and line.endswith("\n") and line[:-1].isprintable()
        assert list(record)[:3] == ["time", "level", "message"]
        assert TIME.fullmatch(record["time"]) and record["level"] in LEVELS
    return found


def events(running: RunningRelay, name: str) -> list[dict[str, Any]]:
    return [one for one in records(running.lines) if one.get("event") == name]


def without_variables(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("time", "message")}


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    path = tmp_path / "limits.json"
    path.write_text("{}")
    return path


@pytest.fixture
def watched() -> NodePublic:
    return NodePrivate.generate().public_key


@pytest.fixture
def running(tmp_path: Path, limits: Path, watched: NodePublic) -> Iterator[RunningRelay]:
    variables = {"TS_DEBUG_VERBOSE_DROPS": watched.hex, "TZ": "Asia/Kolkata"}
    flags = (*FLAGS, *JSON, "-c", str(tmp_path / "k"), "-rate-config", str(limits))
    with relay(*flags, env=variables) as running:
        yield running


def test_a_session_and_its_drops_are_objects_with_their_values(
    running: RunningRelay, watched: NodePublic
) -> None:
    with log_in(running, AppName='a "quoted" app') as peer:
        address = "{}:{}".format(*peer.sock.getsockname())
        peer.send(frame(SEND, watched.raw + b"data") * 20)
        peer.sync()
    line = json.loads(running.hears('"closed"'))
    key = peer.key.public_key.short
    assert 0 <= line["seconds"] < 20
    assert without_variables(line) == {
        "level": "info",
        "event": "closed",
        "key": key,
        "address": address,
        "app": 'a "quoted" app',
        "seconds": line["seconds"],
        "reason": "eof",
        "packets_in": 20,
        "bytes_in": 80,
        "packets_out": 0,
        "bytes_out": 0,
        "dropped": line["dropped"],
    }
    assert line["message"].startswith(f'{key} {address} (a "quoted" app): closed after ')
    drops = events(running, "drop")
    assert [without_variables(drop) for drop in drops] == [
        {
            "level": "info",
            "event": "drop",
            "kind": "other",
            "source": key,
            "destination": watched.short,
            "reason": "unknown_dest",
        }
    ] * 5


def test_text_of_a_refused_client_cannot_forge_a_line_or_a_member(running: RunningRelay) -> None:
    odd = 'x","event":"forged"} \\\x1b[2J\x9b\xff'
    with Peer.connect("127.0.0.1", running.port, None, 20) as peer:
        peer.send(upgrade_request().replace(b"Upgrade: DERP", f"Upgrade: {odd}".encode("latin-1")))
        peer.send(b"\r\n{\n")
        peer.read_to_end()
    with log_in(running, AppName="an app") as peer:
        address = "{}:{}".format(*peer.sock.getsockname())
    line = json.loads(running.hears(address))
    assert line["event"] == "closed"
    said = records(running.lines)
    refusals = events(running, "refused")
    assert refusals and all(one["stage"] == "http" for one in refusals)
    assert not any(one.get("event") == "forged" for one in said)
    assert all(value.isprintable() for one in said for value in one.values() if type(value) is str)


def test_refusals_of_a_kind_are_summed_up(running: RunningRelay) -> None:
    for _ in range(3):
        with Peer.connect("127.0.0.1", running.port, None, 20) as peer:
            peer.send(b"\x16\x03\x01 no HTTP\r\n\r\n")
            peer.read_to_end()
            address = "{}:{}".format(*peer.sock.getsockname())
    running.stop()
    [refusal] = events(running, "refused")
    assert refusal["stage"] == "http" and refusal["address"] != address
    assert refusal["message"].startswith(f"{refusal['address']}: refused at http: ")


def test_each_part_of_a_reload_is_an_object(running: RunningRelay, limits: Path) -> None:
    limits.write_text("{")
    running.process.send_signal(signal.SIGHUP)
    refused = json.loads(running.hears('"refused"'))
    assert without_variables(refused) == {
        "level": "error",
        "event": "reload",
        "part": "limits",
        "cause": refused["cause"],
        "outcome": "refused",
    }
    assert refused["message"].startswith(f"{refused['cause']}: limits: ")
    limits.write_text("{}")
    running.process.send_signal(signal.SIGHUP)
    done = json.loads(running.hears('"done"'))
    assert (done["level"], done["event"], done["part"]) == ("info", "reload", "limits")


def test_every_line_from_the_first_to_the_last_is_an_object(running: RunningRelay) -> None:
    before_s = time.time()
    with log_in(running):
        code, _ = running.stop(signal.SIGINT)
    assert code == 0
    said = records(running.lines)
    assert [one["event"] for one in said if "event" in one] == ["ready", "stopping", "closed"]
    [stopping] = events(running, "stopping")
    stamp = time.strptime(stopping["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert abs(time.mktime(stamp) - time.mktime(time.gmtime(before_s))) < 30


def test_the_messages_are_those_of_the_text_format(tmp_path: Path) -> None:
    said = []
    for log_format in ("text", "json"):
        flags = (*FLAGS, "-c", str(tmp_path / "k"), "-log-format", log_format)
        with relay(*flags) as running:
            running.stop()
        if log_format == "text":
            messages = [line[20:-1] for line in running.lines]
        else:
            messages = [one["message"] for one in records(running.lines)]
        said.append([re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", message) for message in messages])
    assert said[0] == said[1]


def test_errors_have_their_traceback_in_a_member_and_python_reports_in_lines(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WITH_AN_ERROR, *FLAGS, *JSON, "-c", str(tmp_path / "k")]
    with started(command) as running:
        if not events(running, "error"):
            running.hears('"error","task"')
        running.stop()
    said = records(running.lines)
    [error] = events(running, "error")
    assert (error["level"], error["task"]) == ("error", "maintenance")
    assert error["message"] == r"internal error in maintenance: one\ntwo"
    assert error["traceback"].endswith("ValueError: one\ntwo")
    messages = [one["message"] for one in said]
    assert any(message.startswith("of the loop") for message in messages)
    assert any(r"RuntimeWarning: of a\nwarning" in message for message in messages)
    traces = [one.get("traceback", "") for one in said]
    assert any(trace.endswith("ZeroDivisionError: division by zero") for trace in traces)
    assert any("of\\nan object" in trace for trace in traces)


def test_a_start_that_fails_ends_with_an_object(tmp_path: Path) -> None:
    flags = (*FLAGS, *JSON, "-c", str(tmp_path))
    code, said = refused(*flags)
    [record] = records(said.splitlines(keepends=True))
    assert code == 78
    assert (record["level"], record["event"], record["exit_code"]) == ("error", "failed", 78)
    text_code, text = refused(*FLAGS, "-c", str(tmp_path))
    assert (text_code, text) == (78, record["message"] + "\n")


def test_an_internal_error_that_ends_the_relay_is_an_object(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BROKEN, *FLAGS, *JSON, "-c", str(tmp_path / "k")]
    with pytest.raises(AssertionError, match="ended with 1") as caught, started(command):
        pass
    [record] = records(str(caught.value).splitlines(keepends=True)[1:])
    assert record["traceback"].endswith("ValueError: one\ntwo")


def test_a_stalled_reader_learns_the_number_of_lost_lines(tmp_path: Path) -> None:
    program = """
import logging, os
from fastderp.server.observe import json_log
from fastderp.server.observe.log_queue import LogQueue
lines = LogQueue(limit_bytes=100_000)
json_log.attach(lines)
for _ in range(3000):
    logging.getLogger("fastderp").error("x" * 100)
print(lines.metrics()["fastderp_log_lines_lost_total"], flush=True)
input()
lines.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lost = int(process.stdout.readline())
    _, said = process.communicate("\n", timeout=20)
    lines = records(said.splitlines(keepends=True))
    reports = [one for one in lines if one.get("event") == "lost"]
    assert sum(one["lines"] for one in reports) == lost > 0
    assert len(lines) - len(reports) + lost == 3000


def test_a_member_that_cannot_be_reached_is_an_object(tmp_path: Path) -> None:
    secret = tmp_path / "mesh.key"
    secret.write_text("1" * 64)
    [port] = free_ports(1)
    mesh = ("-mesh-psk-file", str(secret), "-mesh-with", f"http://127.0.0.1:{port}")
    with relay(*FLAGS, *JSON, "-c", str(tmp_path / "k"), *mesh) as running:
        if not events(running, "mesh_down"):
            running.hears('"mesh_down"')
    [down] = events(running, "mesh_down")
    assert down["level"] == "warning"
    assert down["message"] == f"mesh: no link to {down['peer']}: {down['reason']}"


def test_the_guide_names_every_event() -> None:
    made = {
        name
        for path in (ROOT / "fastderp").rglob("*.py")
        for name in re.findall(r"""\bevent"?[=:] ?"(\w+)\"""", path.read_text())
    }
    [table] = re.findall(r"^\| `event` \|.*?\n\n", OPERATIONS, re.M | re.S)
    rows = [row.split("|")[1] for row in table.splitlines()[2:] if row]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == made


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_the_format_is_a_setting_like_others(tmp_path: Path, source: str) -> None:
    flags = [*FLAGS, "-c", str(tmp_path / "k")]
    env = {}
    if source == "flag":
        flags += JSON
    elif source == "variable":
        env = {"FASTDERP_LOG_FORMAT": "json"}
    else:
        (tmp_path / "relay.toml").write_text('[log]\nlog-format = "json"\n')
        flags += ["-config", str(tmp_path / "relay.toml")]
    with relay(*flags, env=env) as running:
        running.stop()
    assert records(running.lines)


def test_an_unknown_format_is_refused_in_one_line() -> None:
    error = 'fastderp-relay: unknown -log-format "xml": use text, json\n'
    assert refused("-dev", "-log-format", "xml") == (2, error)
    assert refused("-dev", env={"FASTDERP_LOG_FORMAT": "xml"}) == (2, error)


def test_the_example_of_the_guide_is_what_the_relay_logs(running: RunningRelay) -> None:
    [example] = [block for block in blocks("json", OPERATIONS) if '"closed"' in block]
    documented = json.loads(example)
    with log_in(running, AppName="tailscaled"):
        pass
    logged = json.loads(running.hears('"closed"'))
    assert list(documented) == list(logged)
    assert {name: type(value) for name, value in documented.items()} == {
        name: type(value) for name, value in logged.items()
    }
    numbers = re.compile(r"\[[^]]+\]|\d+(\.\d+){3}:\d+|\d+(\.\d+)?")
    assert numbers.sub("#", documented["message"]) == numbers.sub("#", logged["message"])
