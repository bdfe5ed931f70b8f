"""How much memory this process holds, for tests that something does not grow."""

import os

import psutil

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def resident_bytes() -> int:
    """Return this process's resident memory; always 0 under a sanitizer, which keeps what was freed."""
    if SANITIZED:
        return 0
    resident: int = psutil.Process().memory_info().rss
    return resident
