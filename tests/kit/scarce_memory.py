"""Memory that the threads of a data plane do not get, while the rest of the process does."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.kit.preload import preloading

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>

int workers_memory_is_out, n_refused;

void *malloc(size_t n) {
    static void *(*original)(size_t);
    char thread[16] = "";
    if (!original) original = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    if (__atomic_load_n(&workers_memory_is_out, __ATOMIC_RELAXED)
        && prctl(PR_GET_NAME, thread) == 0 && strcmp(thread, "fastderp-worker") == 0) {
        __atomic_add_fetch(&n_refused, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    return original(n);
}
"""


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of a process that uses `WorkersMemory`."""
    return preloading(_SOURCE, directory)


class WorkersMemory:
    """In that process: whether the threads get memory, and how often they did not."""

    def __init__(self) -> None:
        process = ctypes.CDLL(None)
        self._is_out = ctypes.c_int.in_dll(process, "workers_memory_is_out")
        self._n_refused = ctypes.c_int.in_dll(process, "n_refused")

    @property
    def n_refused(self) -> int:
        return self._n_refused.value

    def run_out(self, is_out: bool) -> None:
        self._is_out.value = is_out
