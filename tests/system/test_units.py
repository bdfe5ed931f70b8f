"""systemd accepts the shipped units and rates the service's exposure as low; no unit is started."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit.sandbox import UNIT

UNITS = sorted(path for path in UNIT.parent.iterdir() if path.suffix in (".service", ".socket"))
# of 10, by `systemd-analyze security`: below 2 is "ok" in its words
MAX_EXPOSURE = 2.5


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60
    )


def has_offline_analysis() -> bool:
    if not shutil.which("systemd-analyze"):
        return False
    version = re.match(r"systemd (\d+)", analyze("--version").stdout)
    return version is not None and int(version[1]) >= 250


pytestmark = pytest.mark.skipif(
    not has_offline_analysis(), reason="needs systemd-analyze of systemd 250 or later"
)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit_without_a_word(unit: Path) -> None:
    # Together: a socket unit names its service.
    done = analyze("verify", "--man=no", *map(str, UNITS))
    told = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, told) == (0, [])


def test_the_services_exposure_is_small() -> None:
    done = analyze("security", "--offline=true", str(UNIT))
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure, done.stdout + done.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE
