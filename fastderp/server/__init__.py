"""The relay, on Linux: its data plane is made of that system's calls."""

import sys

if sys.platform != "linux":
    raise ImportError(
        f"relays and fastderp-bench run on Linux only; on {sys.platform} fastderp is a client "
        "library"
    )
