"""Finds the crypto library at run time and fills the tables of openssl.pxd.

A wheel brings the library _crypto.so, whose only symbol is the list `fastderp_crypto`
(crypto/README.md). Otherwise, and with FASTDERP_CRYPTO=system, the tables are filled from the
libcrypto and libssl that Python's `ssl` module has loaded: the process holds one OpenSSL, with the
security updates of Python's. A Python with a static ssl gets the system's libssl. Runs once, at
import; the tables are constant afterwards. Any thread.
"""

from libc.string cimport memcpy, strcmp
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym

import os

from fastderp.errors import UsageError

BUNDLED = os.path.join(os.path.dirname(__file__), "_crypto.so")
MINIMUM = 0x1010100F  # 1.1.1: the first with TLS 1.3
SYSTEM_LIBRARIES = ("libssl.so.4", "libssl.so.3", "libssl.so.1.1")
INSTALL = (
    "fastderp needs the shared libraries of OpenSSL 1.1.1 or later (libssl and libcrypto); "
    "install your system's libssl package "
    "(Debian, Ubuntu: libssl3; Fedora: openssl-libs; Alpine: libssl3)"
)


cdef struct Export:  # as crypto/build_crypto.py writes it; the last name is NULL
    const char* name
    void* function


cdef void* find(void* library, const char* name) noexcept:
    """Return the function of this name, from the bundled library's list or by dlsym; or NULL."""
    cdef const Export* listed = <const Export*>dlsym(library, "fastderp_crypto")
    if listed is NULL:
        return dlsym(library, name)
    while listed.name is not NULL:
        if strcmp(listed.name, name) == 0:
            return listed.function
        listed += 1
    return NULL


cdef int bind(void* library, const char* name, void* slot) except -1:
    """Store the function `name` in the pointer at `slot` and return True.

    Store NULL and return False when the library lacks the function.
    """
    cdef void* symbol = find(library, name)
    memcpy(slot, &symbol, sizeof(symbol))  # C has no cast between data and function pointers
    return symbol is not NULL


cdef int need(void* library, const char* name, void* slot) except -1:
    if not bind(library, name, slot):
        raise ImportError(f"has no {name.decode()}")
    return 0


cdef int bind_crypto(void* library, Crypto* crypto) except -1:
    need(library, b"OpenSSL_version_num", &crypto.OpenSSL_version_num)
    need(library, b"OpenSSL_version", &crypto.OpenSSL_version)
    need(library, b"OPENSSL_cleanse", &crypto.OPENSSL_cleanse)
    bind(library, b"EVP_CIPHER_fetch", &crypto.EVP_CIPHER_fetch)
    need(library, b"EVP_aes_128_gcm", &crypto.EVP_aes_128_gcm)
    need(library, b"EVP_aes_256_gcm", &crypto.EVP_aes_256_gcm)
    need(library, b"EVP_chacha20_poly1305", &crypto.EVP_chacha20_poly1305)
    need(library, b"EVP_CIPHER_CTX_new", &crypto.EVP_CIPHER_CTX_new)
    need(library, b"EVP_CIPHER_CTX_free", &crypto.EVP_CIPHER_CTX_free)
    need(library, b"EVP_CIPHER_CTX_ctrl", &crypto.EVP_CIPHER_CTX_ctrl)
    need(library, b"EVP_CipherInit_ex", &crypto.EVP_CipherInit_ex)
    need(library, b"EVP_CipherUpdate", &crypto.EVP_CipherUpdate)
    need(library, b"EVP_CipherFinal_ex", &crypto.EVP_CipherFinal_ex)
    bind(library, b"EVP_aead_chacha20_poly1305", &crypto.EVP_aead_chacha20_poly1305)
    bind(library, b"EVP_AEAD_CTX_new", &crypto.EVP_AEAD_CTX_new)
    bind(library, b"EVP_AEAD_CTX_free", &crypto.EVP_AEAD_CTX_free)
    bind(library, b"EVP_AEAD_CTX_seal", &crypto.EVP_AEAD_CTX_seal)
    bind(library, b"EVP_AEAD_CTX_open", &crypto.EVP_AEAD_CTX_open)
    need(library, b"EVP_sha256", &crypto.EVP_sha256)
    need(library, b"SHA256_Init", &crypto.SHA256_Init)
    need(library, b"SHA256_Update", &crypto.SHA256_Update)
    need(library, b"SHA256_Final", &crypto.SHA256_Final)
    need(library, b"SHA384_Init", &crypto.SHA384_Init)
    need(library, b"SHA384_Update", &crypto.SHA384_Update)
    need(library, b"SHA384_Final", &crypto.SHA384_Final)
    need(library, b"EVP_PKEY_new_raw_private_key", &crypto.EVP_PKEY_new_raw_private_key)
    need(library, b"EVP_PKEY_new_raw_public_key", &crypto.EVP_PKEY_new_raw_public_key)
    need(library, b"EVP_PKEY_CTX_new", &crypto.EVP_PKEY_CTX_new)
    need(library, b"EVP_PKEY_CTX_free", &crypto.EVP_PKEY_CTX_free)
    need(library, b"EVP_PKEY_derive_init", &crypto.EVP_PKEY_derive_init)
    need(library, b"EVP_PKEY_derive_set_peer", &crypto.EVP_PKEY_derive_set_peer)
    need(library, b"EVP_PKEY_derive", &crypto.EVP_PKEY_derive)
    need(library, b"ERR_get_error", &crypto.ERR_get_error)
    need(library, b"ERR_clear_error", &crypto.ERR_clear_error)
    need(library, b"ERR_reason_error_string", &crypto.ERR_reason_error_string)
    need(library, b"BIO_s_mem", &crypto.BIO_s_mem)
    need(library, b"BIO_new", &crypto.BIO_new)
    need(library, b"BIO_new_mem_buf", &crypto.BIO_new_mem_buf)
    need(library, b"BIO_free", &crypto.BIO_free)
    need(library, b"BIO_read", &crypto.BIO_read)
    need(library, b"BIO_write", &crypto.BIO_write)
    need(library, b"BIO_ctrl", &crypto.BIO_ctrl)
    need(library, b"d2i_X509", &crypto.d2i_X509)
    need(library, b"i2d_X509", &crypto.i2d_X509)
    need(library, b"X509_free", &crypto.X509_free)
    need(library, b"X509_get0_notBefore", &crypto.X509_get0_notBefore)
    need(library, b"X509_get0_notAfter", &crypto.X509_get0_notAfter)
    need(library, b"X509_cmp_current_time", &crypto.X509_cmp_current_time)
    need(library, b"X509_get_subject_name", &crypto.X509_get_subject_name)
    need(library, b"X509_NAME_get_text_by_NID", &crypto.X509_NAME_get_text_by_NID)
    need(library, b"X509_check_host", &crypto.X509_check_host)
    need(library, b"X509_STORE_add_cert", &crypto.X509_STORE_add_cert)
    need(library, b"X509_VERIFY_PARAM_set1_ip_asc", &crypto.X509_VERIFY_PARAM_set1_ip_asc)
    need(library, b"X509_VERIFY_PARAM_set1_host", &crypto.X509_VERIFY_PARAM_set1_host)
    need(library, b"X509_verify_cert_error_string", &crypto.X509_verify_cert_error_string)
    need(library, b"d2i_AutoPrivateKey", &crypto.d2i_AutoPrivateKey)
    need(library, b"PEM_read_bio_PrivateKey", &crypto.PEM_read_bio_PrivateKey)
    need(library, b"EVP_PKEY_free", &crypto.EVP_PKEY_free)
    need(library, b"OPENSSL_sk_num", &crypto.OPENSSL_sk_num)
    need(library, b"OPENSSL_sk_value", &crypto.OPENSSL_sk_value)
    need(library, b"PEM_read_bio_X509", &crypto.PEM_read_bio_X509)
    need(library, b"X509_get_issuer_name", &crypto.X509_get_issuer_name)
    need(library, b"X509_NAME_cmp", &crypto.X509_NAME_cmp)
    need(library, b"ASN1_TIME_to_tm", &crypto.ASN1_TIME_to_tm)
    need(library, b"X509_get_ext_d2i", &crypto.X509_get_ext_d2i)
    need(library, b"GENERAL_NAME_get0_value", &crypto.GENERAL_NAME_get0_value)
    need(library, b"GENERAL_NAMES_free", &crypto.GENERAL_NAMES_free)
    need(library, b"ASN1_STRING_get0_data", &crypto.ASN1_STRING_get0_data)
    need(library, b"ASN1_STRING_length", &crypto.ASN1_STRING_length)
    need(library, b"X509_get_X509_PUBKEY", &crypto.X509_get_X509_PUBKEY)
    need(library, b"X509_PUBKEY_get0_param", &crypto.X509_PUBKEY_get0_param)
    need(library, b"X509_ALGOR_get0", &crypto.X509_ALGOR_get0)
    need(library, b"OBJ_obj2txt", &crypto.OBJ_obj2txt)
    need(library, b"X509_check_private_key", &crypto.X509_check_private_key)
    need(library, b"i2d_PrivateKey", &crypto.i2d_PrivateKey)
    need(library, b"EVP_PKEY_CTX_new_id", &crypto.EVP_PKEY_CTX_new_id)
    need(library, b"EVP_PKEY_keygen_init", &crypto.EVP_PKEY_keygen_init)
    need(library, b"EVP_PKEY_CTX_ctrl_str", &crypto.EVP_PKEY_CTX_ctrl_str)
    need(library, b"EVP_PKEY_keygen", &crypto.EVP_PKEY_keygen)
    need(library, b"X509_new", &crypto.X509_new)
    need(library, b"X509_set_version", &crypto.X509_set_version)
    need(library, b"X509_get_serialNumber", &crypto.X509_get_serialNumber)
    need(library, b"ASN1_INTEGER_set_uint64", &crypto.ASN1_INTEGER_set_uint64)
    need(library, b"X509_getm_notBefore", &crypto.X509_getm_notBefore)
    need(library, b"X509_getm_notAfter", &crypto.X509_getm_notAfter)
    need(library, b"ASN1_TIME_set", &crypto.ASN1_TIME_set)
    need(library, b"X509_NAME_add_entry_by_NID", &crypto.X509_NAME_add_entry_by_NID)
    need(library, b"X509_set_issuer_name", &crypto.X509_set_issuer_name)
    need(library, b"X509_set_pubkey", &crypto.X509_set_pubkey)
    need(library, b"X509V3_EXT_nconf_nid", &crypto.X509V3_EXT_nconf_nid)
    need(library, b"X509_add_ext", &crypto.X509_add_ext)
    need(library, b"X509_EXTENSION_free", &crypto.X509_EXTENSION_free)
    need(library, b"X509_sign", &crypto.X509_sign)
    bind(library, b"OPENSSL_init_crypto", &crypto.OPENSSL_init_crypto)
    bind(library, b"OSSL_PROVIDER_add_builtin", &crypto.OSSL_PROVIDER_add_builtin)
    bind(library, b"OSSL_PROVIDER_try_load", &crypto.OSSL_PROVIDER_try_load)
    bind(library, b"OSSL_PROVIDER_available", &crypto.OSSL_PROVIDER_available)
    bind(
        library, b"OSSL_PROVIDER_get0_provider_ctx", &crypto.OSSL_PROVIDER_get0_provider_ctx
    )
    bind(library, b"OSSL_PROVIDER_query_operation", &crypto.OSSL_PROVIDER_query_operation)
    bind(library, b"OSSL_PROVIDER_get_capabilities", &crypto.OSSL_PROVIDER_get_capabilities)
    bind(library, b"RAND_priv_bytes", &crypto.RAND_priv_bytes)
    bind(
        library, b"EVP_default_properties_is_fips_enabled",
        &crypto.EVP_default_properties_is_fips_enabled
    )
    return 0


cdef int bind_ssl(void* library, Ssl* ssl) except -1:
    need(library, b"TLS_server_method", &ssl.TLS_server_method)
    need(library, b"TLS_client_method", &ssl.TLS_client_method)
    need(library, b"SSL_CTX_new", &ssl.SSL_CTX_new)
    bind(library, b"SSL_CTX_new_ex", &ssl.SSL_CTX_new_ex)
    need(library, b"SSL_CTX_free", &ssl.SSL_CTX_free)
    need(library, b"SSL_CTX_ctrl", &ssl.SSL_CTX_ctrl)
    need(library, b"SSL_CTX_callback_ctrl", &ssl.SSL_CTX_callback_ctrl)
    need(library, b"SSL_CTX_set_options", &ssl.SSL_CTX_set_options)
    need(library, b"SSL_CTX_set_num_tickets", &ssl.SSL_CTX_set_num_tickets)
    need(library, b"SSL_CTX_set_cipher_list", &ssl.SSL_CTX_set_cipher_list)
    need(library, b"SSL_CTX_set_ciphersuites", &ssl.SSL_CTX_set_ciphersuites)
    need(library, b"SSL_CTX_set_keylog_callback", &ssl.SSL_CTX_set_keylog_callback)
    need(library, b"SSL_CTX_set_alpn_select_cb", &ssl.SSL_CTX_set_alpn_select_cb)
    need(library, b"SSL_CTX_set_client_hello_cb", &ssl.SSL_CTX_set_client_hello_cb)
    need(library, b"SSL_CTX_use_certificate", &ssl.SSL_CTX_use_certificate)
    need(library, b"SSL_CTX_use_PrivateKey", &ssl.SSL_CTX_use_PrivateKey)
    need(library, b"SSL_CTX_check_private_key", &ssl.SSL_CTX_check_private_key)
    need(library, b"SSL_CTX_set_verify", &ssl.SSL_CTX_set_verify)
    need(library, b"SSL_CTX_set_default_verify_paths", &ssl.SSL_CTX_set_default_verify_paths)
    need(library, b"SSL_CTX_load_verify_locations", &ssl.SSL_CTX_load_verify_locations)
    need(library, b"SSL_CTX_get_cert_store", &ssl.SSL_CTX_get_cert_store)
    need(library, b"SSL_new", &ssl.SSL_new)
    need(library, b"SSL_free", &ssl.SSL_free)
    need(library, b"SSL_set_SSL_CTX", &ssl.SSL_set_SSL_CTX)
    need(library, b"SSL_client_hello_get0_ext", &ssl.SSL_client_hello_get0_ext)
    need(library, b"SSL_set_bio", &ssl.SSL_set_bio)
    need(library, b"SSL_set_accept_state", &ssl.SSL_set_accept_state)
    need(library, b"SSL_set_connect_state", &ssl.SSL_set_connect_state)
    need(library, b"SSL_ctrl", &ssl.SSL_ctrl)
    need(library, b"SSL_set_ex_data", &ssl.SSL_set_ex_data)
    need(library, b"SSL_get_ex_data", &ssl.SSL_get_ex_data)
    need(library, b"SSL_do_handshake", &ssl.SSL_do_handshake)
    need(library, b"SSL_read", &ssl.SSL_read)
    need(library, b"SSL_write", &ssl.SSL_write)
    need(library, b"SSL_shutdown", &ssl.SSL_shutdown)
    need(library, b"SSL_has_pending", &ssl.SSL_has_pending)
    need(library, b"SSL_get_error", &ssl.SSL_get_error)
    need(library, b"SSL_version", &ssl.SSL_version)
    need(library, b"SSL_get_current_cipher", &ssl.SSL_get_current_cipher)
    need(library, b"SSL_CIPHER_get_name", &ssl.SSL_CIPHER_get_name)
    need(library, b"SSL_CIPHER_get_protocol_id", &ssl.SSL_CIPHER_get_protocol_id)
    need(library, b"SSL_get_servername", &ssl.SSL_get_servername)
    need(library, b"SSL_get0_alpn_selected", &ssl.SSL_get0_alpn_selected)
    need(library, b"SSL_get_peer_cert_chain", &ssl.SSL_get_peer_cert_chain)
    need(library, b"SSL_get_verify_result", &ssl.SSL_get_verify_result)
    need(library, b"SSL_get0_param", &ssl.SSL_get0_param)
    return 0


def system_libraries() -> list[str]:
    # See openssl.pyi.
    try:
        import _ssl
    except ImportError:
        return list(SYSTEM_LIBRARIES)
    return [getattr(_ssl, "__file__", None) or "", *SYSTEM_LIBRARIES]  # "": ssl is built in


def choose(wanted: str) -> tuple[str, str]:
    # See openssl.pyi.
    if wanted == "system" or (not wanted and not os.path.exists(BUNDLED)):
        return load_first(system_libraries()), "system"
    if wanted in ("", "bundled"):
        path, source = BUNDLED, "bundled"
        if not os.path.exists(path):
            raise ImportError(
                "FASTDERP_CRYPTO=bundled: this installation brings no crypto library, as wheels "
                "do; leave the variable out for the system's OpenSSL"
            )
    elif "/" in wanted:
        path = source = wanted
    else:
        raise UsageError(
            f"FASTDERP_CRYPTO={wanted!r}: it is bundled, system, or the path of a libssl"
        )
    try:
        return load(path), source
    except ImportError as error:
        hint = ""
        if "undefined symbol" in str(error):
            # The loader takes a libcrypto of the same name that is loaded for Python's hashlib.
            hint = (
                "; if Python has loaded an older libcrypto of the same name, replace it: "
                f"FASTDERP_CRYPTO=system LD_LIBRARY_PATH={os.path.dirname(path)}"
            )
        raise ImportError(f"the crypto library {path} cannot be used: {error}{hint}") from None


cdef str load(str candidate):
    """Take every function from a candidate, or none; return the version text."""
    cdef bytes path = os.fsencode(candidate)
    cdef const char* name = path
    cdef const char* why
    cdef void* library = dlopen(name if path else NULL, RTLD_NOW | RTLD_LOCAL)
    cdef Crypto found_crypto
    cdef Ssl found_ssl
    global crypto, ssl
    if library is NULL:
        why = dlerror()
        reason = "" if why is NULL else os.fsdecode(why).removeprefix(f"{candidate}: ")
        raise ImportError(reason or "cannot be opened")
    bind_crypto(library, &found_crypto)
    bind_ssl(library, &found_ssl)
    version = found_crypto.OpenSSL_version(0).decode()
    is_known = version.startswith(("OpenSSL ", "AWS-LC "))
    if not is_known or found_crypto.OpenSSL_version_num() < MINIMUM:
        raise ImportError(f"is {version}")
    crypto = found_crypto
    ssl = found_ssl
    return version


def load_first(candidates: list[str]) -> str:
    # See openssl.pyi.
    refusals = []
    for candidate in candidates:
        try:
            return load(candidate)
        except ImportError as error:
            refusals.append(f"{candidate or 'the Python program'}: {error}")
    raise ImportError(f"{INSTALL}. Tried {'; '.join(refusals)}")


VERSION, SOURCE = choose(os.environ.get("FASTDERP_CRYPTO", ""))
LIBRARY = VERSION.partition(" ")[0]
