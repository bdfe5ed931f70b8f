"""The client's side of TLS: the compiled modules on Linux, Python's `ssl` elsewhere."""

import sys

if sys.platform == "linux":
    from fastderp.tls.channel import channel_of
    from fastderp.tls.context import ClientContext
    from fastderp.tls.handshake import Handshake
else:
    from fastderp.tls.portable import ClientContext, Handshake, channel_of

__all__ = ["ClientContext", "Handshake", "channel_of"]
