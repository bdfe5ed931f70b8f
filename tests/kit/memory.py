"""The memory of this process, for tests of bounded growth."""

import os

import psutil

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def resident_bytes() -> int:
    """Return the resident bytes of this process; 0 under a sanitizer, which keeps freed memory."""
    if SANITIZED:
        return 0
    resident: int = psutil.Process().memory_info().rss
    return resident


def sanitizer_variables() -> dict[str, str]:
    """Return the variables that a checked build needs (see `.ci/run`), if this one runs with them."""
    names = ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "PYTHONMALLOC")
    return {name: os.environ[name] for name in names if name in os.environ}
