"""The protocol without its I/O: frames, keys, boxes, logins and DERP maps."""

import sys

from fastderp.util.compiled import check_compiled

if sys.platform == "linux":
    check_compiled("wire", "sodium")
