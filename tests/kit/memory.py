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
