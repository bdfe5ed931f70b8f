"""Limits of CPU time and memory, in trees of files as the kernel shows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.util import machine
from fastderp.util.machine import cpu_quotas, memory_limits, n_cores

V1 = "cgroup cgroup rw,cpu,cpuacct"
V2 = "cgroup2 cgroup2 rw,nsdelegate"


def process(folder: Path, membership: str, *mounts: str) -> Path:
    """Write the files below /proc of a process; each mount is "ROOT POINT - TYPE SOURCE OPTIONS"."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(membership)
    lines = ["21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"]
    for mount in mounts:
        place, _, file_system = mount.partition(" - ")
        lines.append(f"32 31 0:29 {place} rw,nosuid - {file_system}\n")
    (proc / "mountinfo").write_text("".join(lines))
    return proc


def limit(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / f"cpu.{name}").write_text(text + "\n")


@pytest.mark.parametrize(
    ("limit_text", "cores"),
    [
        ("100000 100000", [1]),
        ("50000 100000", [1]),
        ("150000 100000", [2]),
        ("6400000 100000", [64]),
        ("1000 100000", [1]),
        ("max 100000", []),
        ("", []),
        ("100000", []),
        ("100000 0", []),
        ("-1 100000", []),
        ("a b", []),
    ],
)
def test_a_quota_is_rounded_up_to_cores(tmp_path: Path, limit_text: str, cores: list[int]) -> None:
    proc = process(tmp_path, "0::/pod/relay\n", f"/ {tmp_path}/fs - {V2}")
    limit(tmp_path / "fs/pod/relay", max=limit_text)
    assert cpu_quotas(proc) == cores


def test_the_quotas_of_all_ancestors_count(tmp_path: Path) -> None:
    proc = process(tmp_path, "0::/pod/relay\n", f"/ {tmp_path}/fs - {V2}")
    limit(tmp_path / "fs/pod/relay", max="400000 100000")
    limit(tmp_path / "fs/pod", max="200000 100000")
    limit(tmp_path / "fs/neighbor", max="100000 100000")
    limit(tmp_path, max="100000 100000")
    assert sorted(cpu_quotas(proc)) == [2, 4]


def test_version_1_beside_version_2(tmp_path: Path) -> None:
    membership = "9:name=systemd:/a\n4:memory:/a\n3:cpu,cpuacct:/a/b\n0::/c\n"
    proc = process(
        tmp_path,
        membership,
        f"/ {tmp_path}/cpu,cpuacct - {V1}",
        f"/ {tmp_path}/memory - cgroup cgroup rw,memory",
        f"/ {tmp_path}/unified - {V2}",
    )
    limit(tmp_path / "cpu,cpuacct/a/b", cfs_quota_us="-1", cfs_period_us="100000")
    limit(tmp_path / "cpu,cpuacct/a", cfs_quota_us="250000", cfs_period_us="100000")
    limit(tmp_path / "memory/a", cfs_quota_us="100000", cfs_period_us="100000")
    assert cpu_quotas(proc) == [3]


def test_a_container_that_sees_its_part_of_the_hierarchy(tmp_path: Path) -> None:
    place = str(tmp_path / "a folder").replace(" ", "\\040")
    proc = process(tmp_path, "3:cpu:/docker/1f\n", f"/docker/1f {place} - {V1}")
    limit(tmp_path / "a folder", cfs_quota_us="50000", cfs_period_us="50000")
    assert cpu_quotas(proc) == [1]


def test_a_hierarchy_that_does_not_contain_the_process_sets_no_limit(tmp_path: Path) -> None:
    proc = process(
        tmp_path,
        "0::/../other\n3:cpu:/elsewhere\n",
        f"/ {tmp_path}/fs/a - {V2}",
        f"/docker/1f {tmp_path}/cpu - {V1}",
    )
    for group in ("fs/other", "fs/a", "cpu"):
        limit(tmp_path / group, max="100000 100000", cfs_quota_us="1000", cfs_period_us="1000")
    assert cpu_quotas(proc) == []


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quotas(tmp_path) == []


def test_a_line_that_is_not_understood_is_skipped(tmp_path: Path) -> None:
    proc = process(tmp_path, "\nnonsense\n0::/\n", f"/ {tmp_path}/fs - {V2}")
    with (proc / "mountinfo").open("a") as mountinfo:
        mountinfo.write("\nnonsense\n1 2 - cgroup2\n")
    limit(tmp_path / "fs", max="100000 100000")
    assert cpu_quotas(proc) == [1]


@pytest.mark.parametrize(("quotas", "cores"), [([], 8), ([3], 3), ([64], 8), ([16, 1], 1)])
def test_the_smaller_of_affinity_and_quotas_counts(
    monkeypatch: pytest.MonkeyPatch, quotas: list[int], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("fastderp.util.machine.cpu_quotas", lambda _: quotas)
    assert n_cores() == cores


def test_the_limits_of_memory_of_both_versions(tmp_path: Path) -> None:
    proc = process(
        tmp_path,
        "4:memory:/a\n3:cpu:/a\n0::/b/c\n",
        f"/ {tmp_path}/memory - cgroup cgroup rw,memory",
        f"/ {tmp_path}/cpu - {V1}",
        f"/ {tmp_path}/unified - {V2}",
    )
    for group, name, text in (
        ("memory", "memory.limit_in_bytes", "9223372036854771712"),
        ("memory/a", "memory.limit_in_bytes", "268435456"),
        ("cpu/a", "memory.limit_in_bytes", "1"),
        ("unified/b", "memory.max", "134217728"),
        ("unified/b/c", "memory.max", "max"),
    ):
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / name).write_text(text + "\n")
    assert sorted(memory_limits(proc)) == [134217728, 268435456, 9223372036854771712]


@pytest.fixture
def memory_bytes() -> Callable[[], int]:
    """The function without its memory of an earlier answer."""
    return machine.memory_bytes.__wrapped__


def test_a_limit_above_the_memory_of_the_machine_is_none(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: Callable[[], int]
) -> None:
    monkeypatch.setattr("fastderp.util.machine.memory_limits", lambda _: [])
    installed = memory_bytes()
    assert installed > 1 << 20
    monkeypatch.setattr("fastderp.util.machine.memory_limits", lambda _: [1 << 62])
    assert memory_bytes() == installed
    monkeypatch.setattr("fastderp.util.machine.memory_limits", lambda _: [1 << 62, 1 << 20])
    assert memory_bytes() == 1 << 20


@pytest.mark.parametrize("answer", [-1, OSError(38, "Function not implemented"), ValueError()])
def test_a_system_that_does_not_tell_its_memory_limits_nothing(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: Callable[[], int], answer: int | Exception
) -> None:
    def sysconf(_: str) -> int:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(os, "sysconf", sysconf)
    monkeypatch.setattr("fastderp.util.machine.memory_limits", lambda _: [])
    assert memory_bytes() >= 1 << 40
    monkeypatch.setattr("fastderp.util.machine.memory_limits", lambda _: [1 << 20])
    assert memory_bytes() == 1 << 20
