"""Find libcrypto and libssl at run time and fill the tables of openssl.pxd.

They are the ones Python's own `ssl` module has loaded, so that the process holds one OpenSSL and security
updates come from wherever Python gets them. A Python with a static ssl gets the system's libssl.
Runs once, at import; the tables are constant afterwards. Any thread.
"""

from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlopen, dlsym

MINIMUM = 0x1010100F  # 1.1.1: the first with TLS 1.3
SYSTEM_LIBRARIES = ("libssl.so.3", "libssl.so.1.1")
INSTALL = (
    "fastderp needs the shared libraries of OpenSSL 1.1.1 or later (libssl and libcrypto); "
    "install your system's libssl package (Debian, Ubuntu: libssl3; Fedora: openssl-libs; Alpine: libssl3)"
)


cdef int bind(void* library, const char* name, void** slot) except -1:
    slot[0] = dlsym(library, name)
    if slot[0] is NULL:
        raise ImportError(f"no {name.decode()} in this OpenSSL")
    return 0


cdef int bind_crypto(void* library) except -1:
    bind(library, b"OpenSSL_version_num", <void**> &crypto.OpenSSL_version_num)
    bind(library, b"OpenSSL_version", <void**> &crypto.OpenSSL_version)
    bind(library, b"OPENSSL_cleanse", <void**> &crypto.OPENSSL_cleanse)
    (<void**> &crypto.EVP_CIPHER_fetch)[0] = dlsym(library, b"EVP_CIPHER_fetch")
    bind(library, b"EVP_aes_128_gcm", <void**> &crypto.EVP_aes_128_gcm)
    bind(library, b"EVP_aes_256_gcm", <void**> &crypto.EVP_aes_256_gcm)
    bind(library, b"EVP_chacha20_poly1305", <void**> &crypto.EVP_chacha20_poly1305)
    bind(library, b"EVP_CIPHER_CTX_new", <void**> &crypto.EVP_CIPHER_CTX_new)
    bind(library, b"EVP_CIPHER_CTX_free", <void**> &crypto.EVP_CIPHER_CTX_free)
    bind(library, b"EVP_CIPHER_CTX_ctrl", <void**> &crypto.EVP_CIPHER_CTX_ctrl)
    bind(library, b"EVP_CipherInit_ex", <void**> &crypto.EVP_CipherInit_ex)
    bind(library, b"EVP_CipherUpdate", <void**> &crypto.EVP_CipherUpdate)
    bind(library, b"EVP_CipherFinal_ex", <void**> &crypto.EVP_CipherFinal_ex)
    bind(library, b"EVP_sha256", <void**> &crypto.EVP_sha256)
    bind(library, b"EVP_sha384", <void**> &crypto.EVP_sha384)
    bind(library, b"HMAC", <void**> &crypto.HMAC)
    bind(library, b"ERR_get_error", <void**> &crypto.ERR_get_error)
    bind(library, b"ERR_clear_error", <void**> &crypto.ERR_clear_error)
    bind(library, b"ERR_reason_error_string", <void**> &crypto.ERR_reason_error_string)
    bind(library, b"BIO_s_mem", <void**> &crypto.BIO_s_mem)
    bind(library, b"BIO_new", <void**> &crypto.BIO_new)
    bind(library, b"BIO_new_mem_buf", <void**> &crypto.BIO_new_mem_buf)
    bind(library, b"BIO_free", <void**> &crypto.BIO_free)
    bind(library, b"BIO_read", <void**> &crypto.BIO_read)
    bind(library, b"BIO_write", <void**> &crypto.BIO_write)
    bind(library, b"BIO_ctrl", <void**> &crypto.BIO_ctrl)
    bind(library, b"d2i_X509", <void**> &crypto.d2i_X509)
    bind(library, b"i2d_X509", <void**> &crypto.i2d_X509)
    bind(library, b"X509_free", <void**> &crypto.X509_free)
    bind(library, b"X509_get0_notBefore", <void**> &crypto.X509_get0_notBefore)
    bind(library, b"X509_get0_notAfter", <void**> &crypto.X509_get0_notAfter)
    bind(library, b"X509_cmp_current_time", <void**> &crypto.X509_cmp_current_time)
    bind(library, b"X509_STORE_add_cert", <void**> &crypto.X509_STORE_add_cert)
    bind(library, b"X509_VERIFY_PARAM_set1_ip_asc", <void**> &crypto.X509_VERIFY_PARAM_set1_ip_asc)
    bind(library, b"X509_VERIFY_PARAM_set1_host", <void**> &crypto.X509_VERIFY_PARAM_set1_host)
    bind(library, b"X509_verify_cert_error_string", <void**> &crypto.X509_verify_cert_error_string)
    bind(library, b"d2i_AutoPrivateKey", <void**> &crypto.d2i_AutoPrivateKey)
    bind(library, b"PEM_read_bio_PrivateKey", <void**> &crypto.PEM_read_bio_PrivateKey)
    bind(library, b"EVP_PKEY_free", <void**> &crypto.EVP_PKEY_free)
    bind(library, b"OPENSSL_sk_num", <void**> &crypto.OPENSSL_sk_num)
    bind(library, b"OPENSSL_sk_value", <void**> &crypto.OPENSSL_sk_value)
    return 0


cdef int bind_ssl(void* library) except -1:
    bind(library, b"TLS_server_method", <void**> &ssl.TLS_server_method)
    bind(library, b"TLS_client_method", <void**> &ssl.TLS_client_method)
    bind(library, b"SSL_CTX_new", <void**> &ssl.SSL_CTX_new)
    bind(library, b"SSL_CTX_free", <void**> &ssl.SSL_CTX_free)
    bind(library, b"SSL_CTX_ctrl", <void**> &ssl.SSL_CTX_ctrl)
    bind(library, b"SSL_CTX_callback_ctrl", <void**> &ssl.SSL_CTX_callback_ctrl)
    bind(library, b"SSL_CTX_set_options", <void**> &ssl.SSL_CTX_set_options)
    bind(library, b"SSL_CTX_set_num_tickets", <void**> &ssl.SSL_CTX_set_num_tickets)
    bind(library, b"SSL_CTX_set_cipher_list", <void**> &ssl.SSL_CTX_set_cipher_list)
    bind(library, b"SSL_CTX_set_ciphersuites", <void**> &ssl.SSL_CTX_set_ciphersuites)
    bind(library, b"SSL_CTX_set_keylog_callback", <void**> &ssl.SSL_CTX_set_keylog_callback)
    bind(library, b"SSL_CTX_set_alpn_select_cb", <void**> &ssl.SSL_CTX_set_alpn_select_cb)
    bind(library, b"SSL_CTX_use_certificate", <void**> &ssl.SSL_CTX_use_certificate)
    bind(library, b"SSL_CTX_use_PrivateKey", <void**> &ssl.SSL_CTX_use_PrivateKey)
    bind(library, b"SSL_CTX_check_private_key", <void**> &ssl.SSL_CTX_check_private_key)
    bind(library, b"SSL_CTX_set_verify", <void**> &ssl.SSL_CTX_set_verify)
    bind(library, b"SSL_CTX_set_default_verify_paths", <void**> &ssl.SSL_CTX_set_default_verify_paths)
    bind(library, b"SSL_CTX_load_verify_locations", <void**> &ssl.SSL_CTX_load_verify_locations)
    bind(library, b"SSL_CTX_get_cert_store", <void**> &ssl.SSL_CTX_get_cert_store)
    bind(library, b"SSL_new", <void**> &ssl.SSL_new)
    bind(library, b"SSL_free", <void**> &ssl.SSL_free)
    bind(library, b"SSL_set_bio", <void**> &ssl.SSL_set_bio)
    bind(library, b"SSL_set_accept_state", <void**> &ssl.SSL_set_accept_state)
    bind(library, b"SSL_set_connect_state", <void**> &ssl.SSL_set_connect_state)
    bind(library, b"SSL_ctrl", <void**> &ssl.SSL_ctrl)
    bind(library, b"SSL_set_ex_data", <void**> &ssl.SSL_set_ex_data)
    bind(library, b"SSL_get_ex_data", <void**> &ssl.SSL_get_ex_data)
    bind(library, b"SSL_do_handshake", <void**> &ssl.SSL_do_handshake)
    bind(library, b"SSL_read", <void**> &ssl.SSL_read)
    bind(library, b"SSL_write", <void**> &ssl.SSL_write)
    bind(library, b"SSL_shutdown", <void**> &ssl.SSL_shutdown)
    bind(library, b"SSL_has_pending", <void**> &ssl.SSL_has_pending)
    bind(library, b"SSL_get_error", <void**> &ssl.SSL_get_error)
    bind(library, b"SSL_version", <void**> &ssl.SSL_version)
    bind(library, b"SSL_get_current_cipher", <void**> &ssl.SSL_get_current_cipher)
    bind(library, b"SSL_CIPHER_get_name", <void**> &ssl.SSL_CIPHER_get_name)
    bind(library, b"SSL_CIPHER_get_protocol_id", <void**> &ssl.SSL_CIPHER_get_protocol_id)
    bind(library, b"SSL_get_servername", <void**> &ssl.SSL_get_servername)
    bind(library, b"SSL_get0_alpn_selected", <void**> &ssl.SSL_get0_alpn_selected)
    bind(library, b"SSL_get_peer_cert_chain", <void**> &ssl.SSL_get_peer_cert_chain)
    bind(library, b"SSL_get_verify_result", <void**> &ssl.SSL_get_verify_result)
    bind(library, b"SSL_get0_param", <void**> &ssl.SSL_get0_param)
    return 0


def _candidates() -> list[str]:
    """Name what to open, best first: the extension behind Python's ssl brings its libraries with it."""
    found = []
    try:
        import _ssl
    except ImportError:
        pass
    else:
        found.append(getattr(_ssl, "__file__", None) or "")  # "" is the program itself: ssl built in
    return [*found, *SYSTEM_LIBRARIES]


cdef int load(str candidate) except -1:
    cdef bytes path = candidate.encode()
    cdef const char* name = path
    cdef void* library = dlopen(name if path else NULL, RTLD_NOW | RTLD_LOCAL)
    if library is NULL:
        raise ImportError("cannot be opened")
    bind_crypto(library)
    bind_ssl(library)
    version = crypto.OpenSSL_version(0).decode()
    if not version.startswith("OpenSSL ") or crypto.OpenSSL_version_num() < MINIMUM:
        raise ImportError(f"is {version}")
    return 0


def _load_first() -> str:
    """Load the first candidate that has everything and return its OpenSSL's version text."""
    refusals = []
    for candidate in _candidates():
        try:
            load(candidate)
        except ImportError as error:
            refusals.append(f"{candidate or 'the Python program'}: {error}")
        else:
            return crypto.OpenSSL_version(0).decode()
    raise ImportError(f"{INSTALL}. Tried " + "; ".join(refusals))


VERSION = _load_first()
