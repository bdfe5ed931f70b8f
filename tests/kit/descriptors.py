"""The open descriptors of this process."""

from __future__ import annotations

import asyncio
import os


def n_descriptors() -> int:
    """Return the number of descriptors that are open in this process."""
    return len(os.listdir("/proc/self/fd"))


async def closed_to(n: int) -> None:
    """Wait, for 30 s at most, until no more than `n` descriptors are open."""
    async with asyncio.timeout(30):
        while n_descriptors() > n:
            await asyncio.sleep(0)
