"""How many cores and how much memory this process may use, for defaults. Any thread; Linux only.

A container sees the cores and the memory of its machine, and may have limits. More threads than a
limit of CPU time keeps busy only use it up sooner; then all of them stop until the next period. The
kernel kills a process beyond the limit of memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNKNOWN_BYTES = 1 << 62
# A line of /proc/self/cgroup: hierarchy, controllers (none for version 2), path.
_MEMBERSHIP = re.compile(r"^\d+:(.*?):(.*)$", re.MULTILINE)
# A cgroup's line of /proc/self/mountinfo: root and mount point, version, options of the hierarchy.
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) \S.* - cgroup(2?) \S+ (\S+)$", re.MULTILINE)


def n_cores() -> int:
    """Return how many cores the affinity and the CPU quota of the cgroups leave, at least 1.

    The quota of 1.5 cores counts as 2. Files that are missing or cannot be read set no limit.
    """
    quotas = cpu_quotas(Path("/proc/self"))
    return min([len(os.sched_getaffinity(0)), *quotas])


@functools.cache
def memory_bytes() -> int:
    """Return the memory of the machine, or the limit of the cgroups if that is less.

    A huge number when the system tells neither: older C libraries need /proc for the first. Read
    once per process.
    """
    known = memory_limits(Path("/proc/self"))
    with contextlib.suppress(OSError, ValueError):
        if (n_pages := os.sysconf("SC_PHYS_PAGES")) > 0:
            known.append(n_pages * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=UNKNOWN_BYTES)


def cpu_quotas(proc: Path) -> list[int]:
    """Return the quotas, rounded up to cores, of a process's cgroups and their ancestors.

    proc: the process's folder below /proc.
    """
    folders = _cgroups(proc, "cpu")
    return [cores for folder in folders for cores in (_v2(folder), _v1(folder)) if cores]


def memory_limits(proc: Path) -> list[int]:
    """Do the same for the limits of memory, in bytes."""
    files = [
        folder / name
        for folder in _cgroups(proc, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return [int(word) for file in files for word in _words(file) if word.isdecimal()]


def _cgroups(proc: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's cgroups for a controller, with their ancestors."""
    try:
        memberships = os.fsdecode((proc / "cgroup").read_bytes())
        mounts = os.fsdecode((proc / "mountinfo").read_bytes())
    except OSError:
        return
    paths = {
        each: path
        for controllers, path in _MEMBERSHIP.findall(memberships)
        for each in controllers.split(",")
    }
    for root, point, kind, options in _MOUNT.findall(mounts):
        if kind == "2":
            path = paths.get("")
        else:
            path = paths.get(controller) if controller in options.split(",") else None
        if path is not None:
            yield from _ancestors(
                Path(_unescaped(point)), PurePosixPath(_unescaped(root)), PurePosixPath(path)
            )


def _ancestors(point: Path, root: PurePosixPath, path: PurePosixPath) -> Iterator[Path]:
    """Yield the folders from a cgroup up to the mount point of its hierarchy.

    A cgroup outside the mounted part of the hierarchy has none.
    """
    if path.is_relative_to(root) and ".." not in path.parts:
        below = path.relative_to(root)
        yield from (point / folder for folder in (below, *below.parents))


def _unescaped(field: str) -> str:
    """Return a path of mountinfo, which has spaces as octal numbers."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def _v2(folder: Path) -> int | None:
    """Return the cores of a cgroup of version 2; None without a limit."""
    words = _words(folder / "cpu.max")
    return _cores(words[0], words[1]) if len(words) == 2 else None


def _v1(folder: Path) -> int | None:
    """Return the cores of a cgroup of version 1; None without a limit."""
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return _cores(words[0], words[1]) if len(words) == 2 else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []


def _cores(quota: str, period: str) -> int | None:
    """Return the cores of a quota per period: `max` and -1 mean no limit."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return max(1, -(-int(quota) // int(period)))
