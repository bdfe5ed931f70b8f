"""A monotonic clock for a command that stands still until a test moves it: hours pass at once."""

from __future__ import annotations

import mmap
import subprocess
from pathlib import Path

from bench.relays import c_compiler

_SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift_s;
static struct timespec began;

__attribute__((constructor)) static void begin(void) {
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &began);
    int file = open(getenv("SHIFTED_CLOCK"), O_RDONLY);
    shift_s = mmap(NULL, sizeof *shift_s, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (clock != CLOCK_MONOTONIC || !shift_s) return syscall(SYS_clock_gettime, clock, at);
    *at = began;
    at->tv_sec += *shift_s;
    return 0;
}
"""


class ShiftedClock:
    """The clock of a command that runs with `environment`; it stands at the command's start."""

    def __init__(self, directory: Path) -> None:
        """Compile what the command loads, into `directory`."""
        source, library, place = (directory / f"clock.{kind}" for kind in ("c", "so", "shift"))
        source.write_text(_SOURCE)
        command = [*c_compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        place.write_bytes(bytes(8))
        with place.open("r+b") as file:
            self._shift = mmap.mmap(file.fileno(), 8)
        self.environment: dict[str, str] = {
            "LD_PRELOAD": str(library),
            "SHIFTED_CLOCK": str(place),
        }

    def move_to(self, seconds: int) -> None:
        """Let so many seconds have passed since the command's start; never less than before."""
        self._shift[:] = seconds.to_bytes(8, "little")
