"""Load for any DERP relay: `scenario` says what, `connect` logs in, `engine` (native) drives it,
`run` puts them together and returns a `result`. The command is `fastderp-bench`.
"""
