"""Streams, dialling and proxies, shared by the client and by mesh links."""

import sys

from fastderp.util.compiled import check_compiled

if sys.platform == "linux":
    check_compiled("wire", "message_reader")
