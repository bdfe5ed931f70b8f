"""TLS on OpenSSL: the handshake is OpenSSL's, the record layer ours."""

from fastderp.util.compiled import check_compiled

check_compiled("tls", "record")
