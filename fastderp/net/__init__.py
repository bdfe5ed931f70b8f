"""Streams, dialling and proxies, shared by the client and by mesh links."""

from fastderp.util.compiled import check_compiled

check_compiled("wire", "message_reader")
