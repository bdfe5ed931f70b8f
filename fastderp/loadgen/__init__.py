"""Load for any DERP relay, the parts of `fastderp-bench`.

`scenario` describes a load, `connect` logs clients in, `engine` (native, with its loop in `load`)
sends and receives, `run` combines them and returns a `result`.
"""

from fastderp.util.compiled import check_compiled

check_compiled("loadgen", "engine")
