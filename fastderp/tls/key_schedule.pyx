"""A provider for OpenSSL 3 and 4 with the key derivation of TLS 1.3 (provider-kdf(7)) and X25519.

libssl asks its providers for "TLS13-KDF" (EVP_KDF-TLS13_KDF(7)) some fifteen times per handshake.
This one takes a quarter of the time of OpenSSL's, and keeps the two traffic secrets that the data
plane needs: the key log, which delivers them otherwise, has libssl write every secret of the
handshake as text. X25519 is in key_exchange.pyx. The provider is registered when the module is
imported, beside OpenSSL's own, and serves the contexts of `key_schedule_context`. Other users of
the same libcrypto are not affected; with FIPS, OpenSSL's own algorithms stay in use. No locks: a
derivation uses its arguments and one variable of its thread.
"""

from libc.string cimport memcmp, memcpy, memset, strcmp

from fastderp.tls.hkdf cimport HASH_MAX, expand_label, secret_next
from fastderp.tls.key_exchange cimport (
    key_exchange_algorithms, key_exchange_context, key_exchange_group, key_exchange_init,
)
from fastderp.tls.openssl cimport (
    EVP_KDF_HKDF_MODE_EXPAND_ONLY, EVP_KDF_HKDF_MODE_EXTRACT_ONLY, OPENSSL_INIT_LOAD_CONFIG,
    OSSL_ALGORITHM, OSSL_DISPATCH, OSSL_FUNC_KDF_DERIVE, OSSL_FUNC_KDF_FREECTX,
    OSSL_FUNC_KDF_NEWCTX, OSSL_FUNC_PROVIDER_GET_CAPABILITIES, OSSL_FUNC_PROVIDER_QUERY_OPERATION,
    OSSL_FUNC_PROVIDER_TEARDOWN, OSSL_OP_KDF, OSSL_PARAM, OSSLFunction, ParameterCallback, crypto,
    ssl,
)

cdef extern from *:
    """
    static _Thread_local void *fastderp_derived_secrets;
    """
    void* derived_secrets "fastderp_derived_secrets"

cdef const char* NAME = b"fastderp"
# Preferred for what it has; everything else comes from OpenSSL's providers.
cdef const char* QUERY = b"?provider=fastderp"

cdef uint8_t[HASH_MAX] ZEROS

cdef OSSL_DISPATCH[4] kdf_functions
cdef OSSL_ALGORITHM[2] algorithms
cdef OSSL_DISPATCH[4] provider_functions


cdef struct Derivation:
    # The arguments of one call; the pointers are the caller's.
    int mode
    size_t hash_size             # 0 for a hash that no suite of ours has
    const uint8_t* key
    const uint8_t* salt
    const char* prefix
    const char* label
    const uint8_t* data
    size_t n_key
    size_t n_salt
    size_t n_prefix
    size_t n_label
    size_t n_data


cdef void key_schedule_write_to(TrafficSecrets* secrets) noexcept nogil:
    global derived_secrets
    derived_secrets = secrets


cdef SSL_CTX* key_schedule_context(const SSL_METHOD* method) noexcept nogil:
    if not is_registered:
        return NULL
    return ssl.SSL_CTX_new_ex(NULL, QUERY, method)


cdef size_t hash_size_of(const char* name) noexcept nogil:
    if strcmp(name, "SHA2-256") == 0 or strcmp(name, "SHA256") == 0:
        return 32
    if strcmp(name, "SHA2-384") == 0 or strcmp(name, "SHA384") == 0:
        return 48
    return 0


cdef void arguments_read(Derivation* d, const OSSL_PARAM* parameter) noexcept nogil:
    """Read the parameters of EVP_KDF-TLS13_KDF(7); libssl passes all of them with each call."""
    while parameter.key is not NULL:
        if strcmp(parameter.key, "mode") == 0:
            d.mode = (<int*>parameter.data)[0]
        elif strcmp(parameter.key, "digest") == 0:
            d.hash_size = hash_size_of(<const char*>parameter.data)
        elif strcmp(parameter.key, "key") == 0:
            d.key = <const uint8_t*>parameter.data
            d.n_key = parameter.data_size
        elif strcmp(parameter.key, "salt") == 0:
            d.salt = <const uint8_t*>parameter.data
            d.n_salt = parameter.data_size
        elif strcmp(parameter.key, "prefix") == 0:
            d.prefix = <const char*>parameter.data
            d.n_prefix = parameter.data_size
        elif strcmp(parameter.key, "label") == 0:
            d.label = <const char*>parameter.data
            d.n_label = parameter.data_size
        elif strcmp(parameter.key, "data") == 0:
            d.data = <const uint8_t*>parameter.data
            d.n_data = parameter.data_size
        parameter += 1


cdef bint extract(const Derivation* d, uint8_t* out) noexcept nogil:
    """Derive the next secret; its input is zeros when the arguments have no key."""
    if d.salt is not NULL and (
        d.n_salt != d.hash_size or d.n_label != 7 or memcmp(d.label, b"derived", 7) != 0
    ):
        return False
    if d.key is NULL:
        secret_next(d.hash_size, d.salt, ZEROS, d.hash_size, out)
    else:
        secret_next(d.hash_size, d.salt, d.key, d.n_key, out)
    return True


cdef void secret_keep(const Derivation* d, const uint8_t* secret, size_t n) noexcept nogil:
    """Copy the secret if its label is that of a traffic secret for application data."""
    cdef TrafficSecrets* secrets = <TrafficSecrets*>derived_secrets
    if secrets is NULL or d.n_label != 12 or n > HASH_MAX:
        return
    if memcmp(d.label, b"c ap traffic", 12) == 0:
        memcpy(secrets.client, secret, n)
        secrets.n_client = n
    elif memcmp(d.label, b"s ap traffic", 12) == 0:
        memcpy(secrets.server, secret, n)
        secrets.n_server = n


# The provider's functions


cdef int kdf_derive(
    void* context, uint8_t* out, size_t n_out, const OSSL_PARAM* parameters
) noexcept nogil:
    """Return 1, or 0 for arguments that TLS 1.3 does not use."""
    cdef Derivation d
    memset(&d, 0, sizeof(d))
    if parameters is NULL:
        return 0
    arguments_read(&d, parameters)
    if d.hash_size == 0 or d.n_prefix != 6 or memcmp(d.prefix, b"tls13 ", 6) != 0:
        return 0
    if d.mode == EVP_KDF_HKDF_MODE_EXTRACT_ONLY:
        return n_out == d.hash_size and extract(&d, out)
    if d.mode != EVP_KDF_HKDF_MODE_EXPAND_ONLY or d.n_key != d.hash_size:
        return 0
    if not expand_label(
        d.hash_size, d.key, d.label, d.n_label, d.data, d.n_data, out, n_out
    ):
        return 0
    secret_keep(&d, out, n_out)
    return 1


cdef void* kdf_new(void* provider) noexcept nogil:
    """Return a context: any address, because a derivation keeps nothing."""
    return &kdf_functions


cdef void kdf_free(void* context) noexcept nogil:
    pass


cdef const OSSL_ALGORITHM* provider_query(
    void* provider, int operation, int* no_cache
) noexcept nogil:
    no_cache[0] = 0
    if operation == OSSL_OP_KDF:
        return &algorithms[0]
    return key_exchange_algorithms(operation)


cdef int provider_capabilities(
    void* provider, const char* capability, ParameterCallback callback, void* argument
) noexcept nogil:
    if strcmp(capability, b"TLS-GROUP") == 0 and key_exchange_context() is not NULL:
        return key_exchange_group(callback, argument)
    return 1


cdef void provider_teardown(void* provider) noexcept nogil:
    pass


cdef int provider_init(
    const void* handle, const OSSL_DISPATCH* core, const OSSL_DISPATCH** functions, void** provider
) noexcept nogil:
    functions[0] = &provider_functions[0]
    provider[0] = key_exchange_context()
    if provider[0] is NULL:
        provider[0] = &provider_functions
    return 1


cdef bint register() noexcept:
    """Add the provider to libcrypto; False without OpenSSL 3, and with FIPS."""
    if crypto.OSSL_PROVIDER_add_builtin is NULL or ssl.SSL_CTX_new_ex is NULL:
        return False
    # The properties are in OpenSSL's configuration file.
    crypto.OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CONFIG, NULL)
    if crypto.EVP_default_properties_is_fips_enabled(NULL):
        return False
    kdf_functions[0] = OSSL_DISPATCH(OSSL_FUNC_KDF_NEWCTX, <OSSLFunction>kdf_new)
    kdf_functions[1] = OSSL_DISPATCH(OSSL_FUNC_KDF_FREECTX, <OSSLFunction>kdf_free)
    kdf_functions[2] = OSSL_DISPATCH(OSSL_FUNC_KDF_DERIVE, <OSSLFunction>kdf_derive)
    algorithms[0] = OSSL_ALGORITHM(b"TLS13-KDF", b"provider=fastderp", &kdf_functions[0], NULL)
    provider_functions[0] = OSSL_DISPATCH(
        OSSL_FUNC_PROVIDER_QUERY_OPERATION, <OSSLFunction>provider_query
    )
    provider_functions[1] = OSSL_DISPATCH(
        OSSL_FUNC_PROVIDER_TEARDOWN, <OSSLFunction>provider_teardown
    )
    provider_functions[2] = OSSL_DISPATCH(
        OSSL_FUNC_PROVIDER_GET_CAPABILITIES, <OSSLFunction>provider_capabilities
    )
    key_exchange_init()
    # A name that is taken is this provider, from an earlier import.
    crypto.OSSL_PROVIDER_add_builtin(NULL, NAME, <OSSLFunction>provider_init)
    # 1: OpenSSL's default provider is loaded as before.
    return crypto.OSSL_PROVIDER_try_load(NULL, NAME, 1) is not NULL


# Constant after import.
cdef bint is_registered = register()
crypto.ERR_clear_error()
