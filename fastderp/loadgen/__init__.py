"""Load for any DERP relay: `scenario` says what, `connect` logs in, `engine` (native, its loop in
`load`) drives it, `run` puts them together and returns a `result`. The command is `fastderp-bench`.
"""

from fastderp.util.compiled import check_compiled

check_compiled("loadgen", "engine")
