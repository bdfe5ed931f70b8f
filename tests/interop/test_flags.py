"""The flags of derper and fastderp-relay: the same names, kinds and defaults. PROTOCOL §12."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from fastderp.cli.flag_table import flag_table
from fastderp.cli.flags import Flag, boolean, duration, integer, number

from .conftest import StartRelay
from .deviations import REFUSED_FLAGS

pytestmark = pytest.mark.timeout(600)

KINDS = {
    "string": str,
    "int": integer,
    "float": number,
    "duration": duration,
    "": boolean,
    "0": str,
}


def flags_of(derper: Path) -> dict[str, tuple[str, str]]:
    """Return the kind and default of each flag in derper's help."""
    text = subprocess.run([derper, "-help"], capture_output=True, text=True, timeout=60).stderr
    found = {}
    for match in re.finditer(r"^  -(\S+) ?(\S*)\n\s+(.*)$", text, re.MULTILINE):
        default = re.search(r"\(default (.*?)\)$", match[3])
        found[match[1]] = (match[2], default[1].strip('"') if default else "")
    return found


def is_default(flag: Flag, text: str) -> bool:
    """Return whether derper's help means our default; it omits false, zero and empty ones."""
    return bool(
        flag.read(flag.default)
        == (flag.read(text) if text else flag.read("false" if flag.read is boolean else ""))
    )


def test_every_flag_of_derper_is_ours_with_its_kind_and_default(newest_derper: Path) -> None:
    ours = {flag.name: flag for flag in flag_table(os.environ)}
    theirs = flags_of(newest_derper)
    assert len(theirs) >= 30
    assert theirs.keys() <= ours.keys()
    wrong = {
        name: (kind, default, ours[name].default)
        for name, (kind, default) in theirs.items()
        if KINDS[kind] is not ours[name].read or not is_default(ours[name], default)
    }
    assert not wrong


@pytest.mark.parametrize("flag", REFUSED_FLAGS)
async def test_a_flag_that_only_derper_accepts_is_refused(
    flag: str, start_derper: StartRelay, start_fastderp: StartRelay
) -> None:
    async with start_derper(flag):
        pass
    with pytest.raises(RuntimeError, match="exited with 2"):
        async with start_fastderp(flag):
            pass
