"""The shares of senders that overload one receiver, through the installed command."""

import json
import subprocess
import sys
from pathlib import Path

from bench.relays import fastderp, running

COMMAND = str(Path(sys.executable).with_name("fastderp-bench"))


def test_fifty_senders_that_flood_one_receiver_get_equal_shares() -> None:
    with running(fastderp()) as relay:
        done = subprocess.run(
            [
                COMMAND,
                relay.url,
                "--shape",
                "fan-in",
                "--pairs",
                "50",
                "--never-wait",
                "--warmup",
                "0.3",
                "--duration",
                "0.7",
                "--quiet",
                "--json",
                "-",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["connections_lost"] == result["corrupt"] == 0
    assert result["fairness"] >= 0.95
