"""Load for any DERP relay: `scenario` describes it, `connect` logs in, `engine` (native, loop in
`load`) drives it, `run` puts them together and returns a `result`. The command is `fastderp-bench`.
"""

from fastderp.util.compiled import check_compiled

check_compiled("loadgen", "engine")
