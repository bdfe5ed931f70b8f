"""Benchmarks of the relay and of the client library."""

from fastderp.util.compiled import check_compiled

check_compiled("loadgen", "engine")
