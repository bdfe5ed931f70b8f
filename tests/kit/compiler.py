"""The C compiler that benches and tests of C functions use."""

from __future__ import annotations

import shutil

from bench.relays import c_compiler


def has_c_compiler() -> bool:
    """Return whether $CC, or cc without it, is installed."""
    return shutil.which(c_compiler()[0]) is not None
