"""Where fastderp answers otherwise than derper, on purpose: every such conversation and why.

Left out of the comparison altogether are the Health frames that tell the holders of one key of each other.
"""

DEVIATIONS = {
    "a second departure": "PROTOCOL 21: derper tells a receiver of a peer's first departure only",
    "upgrade with a doubled slash": "derper redirects //derp to /derp with 307, a habit of Go's request router; "
    "no client asks for it, and here it is an unknown path like any other",
    "upgrade by HTTP/3.0": "refused by both; our parser knows no such version and answers 400, derper 505",
}
