"""TLS on OpenSSL: the handshake is OpenSSL's, the record layer ours."""

import sys

from fastderp.util.compiled import check_compiled

if sys.platform == "linux":
    check_compiled("tls", "record")
