"""`python -m bench.compare` as a process, on one core and with the cheapest relay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.compiler import has_c_compiler

ROOT = Path(__file__).parents[2]


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.compare", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_scenario_runs_on_every_relay_in_every_round(tmp_path: Path) -> None:
    if not has_c_compiler():
        pytest.skip("no C compiler for the floor relay")
    core = str(min(os.sched_getaffinity(0)))
    kept = tmp_path / "result.json"
    done = compare(
        "--relays",
        "floor",
        "--rounds",
        "2",
        "--duration",
        "0.2",
        "--relay-core",
        core,
        "--load-core",
        core,
        "--output",
        str(kept),
        "pairs-10",
        "small",
    )
    assert done.returncode == 0, done.stderr
    assert "CPU µs/packet" in done.stdout
    document = json.loads(kept.read_text())
    assert document["relays"] == {"floor": "0"}
    for name in ("pairs-10", "small"):
        assert len(document["measured"][name]["floor"]) == 2
    assert "bench.compare" in " ".join(document["environment"]["command"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "no such scenario"),
        (["--relays", "nope"], "derper, derper-1.98, floor, fastderp"),
        (["--relays", "", "--relay", "x=sleep 1"], "{port}"),
        (["--relays", "", "--relay", "x=no-such-program {port}", "pairs-10"], "no-such-program"),
        (["--relays", "", "--relay", "x=false {port}", "pairs-10"], "x did not start"),
        (["--derper", "/proc/nonexistent/derper"], "/proc/nonexistent/derper"),
        (["--relays", "", "pairs-10"], "no relay"),
        (["--relays", "", "--relay", "x=sleep {port}", "tls/pairs-10"], "TLS"),
    ],
)
def test_an_impossible_comparison_is_one_clear_line(arguments: list[str], words: str) -> None:
    done = compare(*arguments, "--output", os.devnull)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
