"""The parts of a process: by the names of mappings, in `bench.idle` and in callgrind's files."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

import fastderp
from bench import idle, login_instructions
from bench.login_instructions import self_costs
from bench.parts import part_of

OURS = Path(fastderp.__file__).resolve().parent
PYTHON = str(Path(sys.executable).resolve())
PACKAGES = "/usr/lib/python3/dist-packages"


@pytest.mark.parametrize(
    ("mapped", "part"),
    [
        (str(OURS / "dataplane" / "worker.cpython-313-x86_64-linux-gnu.so"), "fastderp"),
        (str(OURS / "tls" / "_crypto.so"), "crypto library (bundled)"),
        (PYTHON, "Python"),
        ("/usr/lib/python3.13/lib-dynload/_json.cpython-313-x86_64-linux-gnu.so", "Python"),
        ("/usr/lib/x86_64-linux-gnu/libpython3.13.so.1.0", "Python"),
        ("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "libcrypto"),
        ("/usr/lib/libssl.so.3 (deleted)", "libssl"),
        ("/lib/x86_64-linux-gnu/libc-2.31.so", "libc"),
        ("/lib64/ld-linux-x86-64.so.2", "ld.so"),
        (f"{PACKAGES}/nacl/_sodium.abi3.so", "libsodium"),
        (f"{PACKAGES}/uvloop/loop.cpython-313-x86_64-linux-gnu.so", "uvloop"),
        (f"{PACKAGES}/_cffi_backend.cpython-313-x86_64-linux-gnu.so", "_cffi_backend"),
        ("/opt/derper-1.104.7", "derper-1.104.7"),
        ("[heap]", "heap"),
        ("[anon:pymalloc]", "anonymous"),
        ("", "anonymous"),
        ("???", "unknown"),
    ],
)
def test_a_mapping_belongs_to_a_part(mapped: str, part: str) -> None:
    assert part_of(mapped) == part


SMAPS = """\
55d0c0a00000-55d0c0a01000 r-xp 00000000 fd:01 1234                       /usr/lib/libcrypto.so.3
Size:                100 kB
Rss:                  80 kB
Pss:                  30 kB
Pss_Dirty:             7 kB
Private_Clean:         5 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
55d0c0b00000-55d0c0b01000 rw-p 00000000 fd:01 1234                       /usr/lib/libcrypto.so.3
Rss:                  20 kB
Pss:                  20 kB
Private_Clean:         1 kB
Private_Dirty:        19 kB
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
Rss:                4096 kB
Pss:                4096 kB
Private_Clean:         0 kB
Private_Dirty:      4096 kB
"""


def test_the_mappings_of_a_file_are_added_up() -> None:
    parts = idle.by_part(SMAPS.splitlines())
    assert parts == {
        "RSS": Counter(libcrypto=100, anonymous=4096),
        "PSS": Counter(libcrypto=50, anonymous=4096),
        "private": Counter(libcrypto=25, anonymous=4096),
    }
    assert idle.table(parts).splitlines()[2:] == [
        "| anonymous | 4,096 | 4,096 | 4,096 |",
        "| libcrypto | 100 | 50 | 25 |",
        "| all | 4,196 | 4,146 | 4,121 |",
    ]


def test_the_parts_of_this_process_add_up_to_its_memory() -> None:
    lines = Path("/proc/self/smaps").read_text().splitlines()
    parts = idle.by_part(lines)
    rss = [int(line.split()[1]) for line in lines if line.startswith("Rss:")]
    assert parts["RSS"].total() == sum(rss)
    assert min(parts["RSS"][part] for part in ("Python", "libc", "fastderp", "anonymous")) > 0
    assert all(parts["private"][part] <= parts["RSS"][part] for part in parts["RSS"])


CALLGRIND = """\
# callgrind format
version: 1
cmd:  python bench/login_cost.py
positions: line
events: Ir
summary: 1150

ob=(1) /usr/lib/libcrypto.so.3
fl=(1) ???
fn=(10) EVP_sign
0 100
+4 30
cob=(2) /usr/lib/libc.so.6
cfi=(2) malloc.c
cfn=(11) malloc
calls=3 0
* 700

ob=(2)
fl=(2)
fn=(11)
16 600
-2 400

ob=(1)
fn=(12) EVP_verify
12 20

totals: 1150
"""


def test_the_cost_of_called_functions_counts_for_their_own_library_only() -> None:
    assert self_costs(CALLGRIND.splitlines(keepends=True)) == Counter(
        {"/usr/lib/libcrypto.so.3": 150, "/usr/lib/libc.so.6": 1000}
    )


def test_a_file_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(RuntimeError, match="counted 1151 instructions, its file has 1150"):
        self_costs(CALLGRIND.replace("totals: 1150", "totals: 1151").splitlines())


def test_instructions_are_shown_per_login_with_their_share() -> None:
    found = {"plain": Counter(libc=300, libsodium=100), "TLS": Counter(libc=500, libssl=500)}
    assert login_instructions.table(found, 10).splitlines() == [
        "| instructions per login | plain | TLS |",
        "|---|--:|--:|",
        "| libc | 30 (75.0%) | 50 (50.0%) |",
        "| libssl | 0 (0.0%) | 50 (50.0%) |",
        "| libsodium | 10 (25.0%) | 0 (0.0%) |",
        "| all | 40 | 100 |",
    ]


def test_without_valgrind_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert login_instructions.main([]) == 1
    assert capsys.readouterr().err == (
        "bench.login_instructions: no valgrind: install valgrind and its callgrind_control\n"
    )


@pytest.mark.skipif(shutil.which("callgrind_control") is None, reason="no valgrind")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer does not run in valgrind")
def test_the_instructions_of_a_few_logins_are_counted() -> None:
    parts = login_instructions.count(tls=True, n_logins=2, n_before=2, fast_start=True)
    assert min(parts[part] for part in ("Python", "libcrypto", "libsodium", "fastderp")) > 1000
