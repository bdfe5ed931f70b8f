"""The public types are complete: pyright infers none."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fastderp import Client, HTTPClient

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_every_public_name_has_a_complete_type(tmp_path: Path) -> None:
    command = ["pyright", "--pythonpath", sys.executable, "--verifytypes", "fastderp"]
    shown = subprocess.run(
        [*command, "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,  # in another folder, like a program that uses the package
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    ).stdout
    report = json.loads(shown)["typeCompleteness"]
    assert report["packageName"] == "fastderp" and len(report["symbols"]) > 1000
    incomplete = [
        symbol["name"]
        for symbol in report["symbols"]
        if symbol["isExported"] and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
    ]
    assert incomplete == []
    assert report["completenessScore"] == 1


@pytest.mark.parametrize("client", [Client, HTTPClient])
@pytest.mark.parametrize("name", ["send", "try_send", "forward_packet", "send_ping", "send_pong"])
def test_the_types_of_data_that_are_sent_are_those_that_are_accepted(
    client: type, name: str
) -> None:
    send: Callable[..., Any] = getattr(client, name)
    assert get_type_hints(send)["data"] == bytes | bytearray | memoryview
