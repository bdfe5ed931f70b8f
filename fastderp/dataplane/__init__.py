"""The data plane: threads without the GIL that read, route, queue and write packets."""

from fastderp.util.compiled import check_compiled

check_compiled("dataplane", "plane")
