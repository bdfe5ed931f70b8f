"""Describes the crypto library in use, and the gain of another one. Any thread."""

from __future__ import annotations

import re

from fastderp.tls.openssl import LIBRARY, SOURCE, VERSION

# AES-GCM over 32 or 64 bytes at once, as OpenSSL from 3.1 on and AWS-LC do it, needs all of these.
WIDE_AES = frozenset(("vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl"))
WIDE_AES_SINCE = (3, 1)

_CPUINFO = "/proc/cpuinfo"


def description() -> str:
    """Return name, version and source for logs: `AWS-LC 5.12.0 (bundled)`."""
    return f"{' '.join(VERSION.split()[:2])} ({SOURCE})"


def labels() -> tuple[str, str, str]:
    """Return the labels of `fastderp_crypto_info`: library, version, source."""
    return LIBRARY, VERSION.split()[1], SOURCE


def hint() -> str | None:
    """Return a hint when another library would be faster on this processor, else none."""
    if uses_wide_aes(VERSION) or not _processor_flags() >= WIDE_AES:
        return None
    name = " ".join(VERSION.split()[:2])
    return (
        f"this processor has AES instructions (VAES, AVX-512) that {name} does not use: TLS packets "
        "are encrypted in a half to a quarter of the time by OpenSSL 3.1 or later, or by the "
        "library that the wheels of fastderp bring (FASTDERP_CRYPTO=bundled)"
    )


def uses_wide_aes(version: str) -> bool:
    """Whether a library of this version text has code for WIDE_AES."""
    number = re.match(r"OpenSSL (\d+)\.(\d+)", version)
    return number is None or (int(number[1]), int(number[2])) >= WIDE_AES_SINCE


def _processor_flags() -> set[str]:
    try:
        with open(_CPUINFO) as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(flags.partition(":")[2].split())
