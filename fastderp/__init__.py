"""fastderp: a DERP relay and client library, wire-compatible with tailscale's derper.

The public names are imported when they are first used, so that a program pays only for
the half it needs.
"""

__version__ = "0.1.0"
