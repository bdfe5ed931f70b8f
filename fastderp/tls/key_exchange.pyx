"""X25519 for handshakes of OpenSSL 3 and 4, with key pairs from libsodium (provider-keymgmt(7)).

A handshake makes one key pair. OpenSSL's generation takes 2.5 times as long as libsodium's; its key
agreement is the faster one. So these algorithms are those of OpenSSL's default provider, with the
same contexts and keys, but for the generation. Constant after import; any thread.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset, strcmp, strncmp

from fastderp.tls.openssl cimport (
    OSSL_ALGORITHM, OSSL_DISPATCH, OSSL_FUNC_KEYMGMT_DUP, OSSL_FUNC_KEYMGMT_FREE,
    OSSL_FUNC_KEYMGMT_GEN, OSSL_FUNC_KEYMGMT_GEN_CLEANUP, OSSL_FUNC_KEYMGMT_GEN_INIT,
    OSSL_FUNC_KEYMGMT_GEN_SETTABLE_PARAMS, OSSL_FUNC_KEYMGMT_GEN_SET_PARAMS,
    OSSL_FUNC_KEYMGMT_IMPORT, OSSL_FUNC_KEYMGMT_LOAD, OSSL_FUNC_KEYMGMT_NEW,
    OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME, OSSL_FUNC_KEYMGMT_SETTABLE_PARAMS,
    OSSL_KEYMGMT_SELECT_KEYPAIR, OSSL_OP_KEYEXCH, OSSL_OP_KEYMGMT, OSSL_PARAM_OCTET_STRING,
    OSSL_PARAM, OSSLFunction, ParameterCallback, crypto,
)
from fastderp.wire.sodium cimport public_key_write

ctypedef void* (*new_function)(void* provider) noexcept nogil
ctypedef void (*free_function)(void* key) noexcept nogil
ctypedef int (*import_function)(void* key, int parts, const OSSL_PARAM* values) noexcept nogil
ctypedef void* (*begin_function)(
    void* provider, int parts, const OSSL_PARAM* options) noexcept nogil
ctypedef int (*set_function)(void* generation, const OSSL_PARAM* options) noexcept nogil
ctypedef const OSSL_PARAM* (*settable_function)(void* generation, void* provider) noexcept nogil
ctypedef void* (*generate_function)(
    void* generation, void* callback, void* argument) noexcept nogil

cdef enum:
    KEY = 32
    MAX_FUNCTIONS = 24

cdef void* openssl                       # the default provider
cdef const OSSL_DISPATCH* theirs         # its functions for X25519 keys
cdef const OSSL_DISPATCH* agreement      # and for the agreement
cdef OSSL_DISPATCH[MAX_FUNCTIONS] ours
cdef OSSL_ALGORITHM[2] keys
cdef OSSL_ALGORITHM[2] agreements


cdef bint is_x25519(const char* names) noexcept nogil:
    """Whether a name, or a list with colons, begins with that of the group."""
    return (names[0] | 32) == b"x" and strncmp(names + 1, b"25519", 5) == 0 and (
        names[6] == b":" or names[6] == 0
    )


cdef const OSSL_DISPATCH* find_x25519(int operation) noexcept nogil:
    cdef int no_cache = 0
    cdef const OSSL_ALGORITHM* one = crypto.OSSL_PROVIDER_query_operation(
        openssl, operation, &no_cache)
    while one is not NULL and one.algorithm_names is not NULL:
        if is_x25519(one.algorithm_names):
            return one.implementation
        one += 1
    return NULL


cdef OSSLFunction function_of(const OSSL_DISPATCH* functions, int number) noexcept nogil:
    while functions.function_id:
        if functions.function_id == number:
            return functions.function
        functions += 1
    return NULL


cdef bint is_of_keys(int number) noexcept nogil:
    """Whether a function of OpenSSL 3.0 acts on keys; others may act on generations."""
    return (
        number == OSSL_FUNC_KEYMGMT_NEW
        or OSSL_FUNC_KEYMGMT_LOAD <= number <= OSSL_FUNC_KEYMGMT_SETTABLE_PARAMS
        or OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME <= number <= OSSL_FUNC_KEYMGMT_DUP
    )


cdef bint is_key_pair(void* generation) noexcept nogil:
    """Whether it makes a key pair, which needs no state; other generations are OpenSSL's."""
    return generation == &ours


cdef void* generation_begin(
    void* provider, int parts, const OSSL_PARAM* options
) noexcept nogil:
    if parts & OSSL_KEYMGMT_SELECT_KEYPAIR:
        return &ours if generation_set(&ours, options) else NULL
    return (<begin_function>function_of(theirs, OSSL_FUNC_KEYMGMT_GEN_INIT))(
        provider, parts, options)


cdef int generation_set(void* generation, const OSSL_PARAM* options) noexcept nogil:
    """Return 1 unless another group is asked for."""
    if not is_key_pair(generation):
        return (<set_function>function_of(theirs, OSSL_FUNC_KEYMGMT_GEN_SET_PARAMS))(
            generation, options)
    while options is not NULL and options.key is not NULL:
        if strcmp(options.key, b"group") == 0 and not is_x25519(<const char*>options.data):
            return 0
        options += 1
    return 1


cdef const OSSL_PARAM* generation_settable(void* generation, void* provider) noexcept nogil:
    return (<settable_function>function_of(theirs, OSSL_FUNC_KEYMGMT_GEN_SETTABLE_PARAMS))(
        NULL if is_key_pair(generation) else generation, provider)


cdef void* generate(void* generation, void* callback, void* argument) noexcept nogil:
    """Return a new key of OpenSSL's, NULL without memory or random numbers."""
    cdef uint8_t[KEY] public
    cdef uint8_t[KEY] private
    cdef OSSL_PARAM[3] values
    cdef void* key
    if not is_key_pair(generation):
        return (<generate_function>function_of(theirs, OSSL_FUNC_KEYMGMT_GEN))(
            generation, callback, argument)
    if crypto.RAND_priv_bytes(private, KEY) <= 0:
        return NULL
    private[0] &= 248            # RFC 7748 §5
    private[31] = (private[31] & 127) | 64
    public_key_write(public, private)
    memset(values, 0, sizeof(values))
    values[0] = OSSL_PARAM(b"pub", OSSL_PARAM_OCTET_STRING, &public[0], KEY, 0)
    values[1] = OSSL_PARAM(b"priv", OSSL_PARAM_OCTET_STRING, &private[0], KEY, 0)
    key = (<new_function>function_of(theirs, OSSL_FUNC_KEYMGMT_NEW))(key_exchange_context())
    if key is not NULL and (<import_function>function_of(theirs, OSSL_FUNC_KEYMGMT_IMPORT))(
        key, OSSL_KEYMGMT_SELECT_KEYPAIR, values
    ) != 1:
        (<free_function>function_of(theirs, OSSL_FUNC_KEYMGMT_FREE))(key)
        key = NULL
    crypto.OPENSSL_cleanse(private, KEY)
    return key


cdef void generation_end(void* generation) noexcept nogil:
    if not is_key_pair(generation):
        (<free_function>function_of(theirs, OSSL_FUNC_KEYMGMT_GEN_CLEANUP))(generation)


cdef struct Receiver:
    ParameterCallback callback
    void* argument


cdef int note_x25519(const OSSL_PARAM* group, void* argument) noexcept nogil:
    """Pass the description of the group on if it is that of X25519."""
    cdef Receiver* receiver = <Receiver*>argument
    cdef const OSSL_PARAM* one = group
    while one.key is not NULL:
        if strcmp(one.key, b"tls-group-alg") == 0 and is_x25519(<const char*>one.data):
            return receiver.callback(group, receiver.argument)
        one += 1
    return 1


# The provider's part


cdef int key_exchange_group(ParameterCallback callback, void* argument) noexcept nogil:
    cdef Receiver receiver
    receiver.callback = callback
    receiver.argument = argument
    return crypto.OSSL_PROVIDER_get_capabilities(openssl, b"TLS-GROUP", note_x25519, &receiver)


cdef void* key_exchange_context() noexcept nogil:
    return crypto.OSSL_PROVIDER_get0_provider_ctx(openssl) if openssl is not NULL else NULL


cdef const OSSL_ALGORITHM* key_exchange_algorithms(int operation) noexcept nogil:
    if agreement is NULL:
        return NULL
    if operation == OSSL_OP_KEYMGMT:
        return &keys[0]
    return &agreements[0] if operation == OSSL_OP_KEYEXCH else NULL


cdef void key_exchange_init() noexcept nogil:
    global openssl, theirs, agreement
    cdef const OSSL_DISPATCH* one
    cdef int n = 5
    if crypto.OSSL_PROVIDER_get_capabilities is NULL:
        return
    if not crypto.OSSL_PROVIDER_available(NULL, b"default"):
        return
    openssl = crypto.OSSL_PROVIDER_try_load(NULL, b"default", 1)
    if openssl is NULL:
        return
    theirs = find_x25519(OSSL_OP_KEYMGMT)
    agreement = find_x25519(OSSL_OP_KEYEXCH)
    if theirs is NULL or agreement is NULL:
        agreement = NULL
        return
    ours[0] = OSSL_DISPATCH(OSSL_FUNC_KEYMGMT_GEN_INIT, <OSSLFunction>generation_begin)
    ours[1] = OSSL_DISPATCH(OSSL_FUNC_KEYMGMT_GEN_SET_PARAMS, <OSSLFunction>generation_set)
    ours[2] = OSSL_DISPATCH(
        OSSL_FUNC_KEYMGMT_GEN_SETTABLE_PARAMS, <OSSLFunction>generation_settable)
    ours[3] = OSSL_DISPATCH(OSSL_FUNC_KEYMGMT_GEN, <OSSLFunction>generate)
    ours[4] = OSSL_DISPATCH(OSSL_FUNC_KEYMGMT_GEN_CLEANUP, <OSSLFunction>generation_end)
    one = theirs
    while one.function_id and n < MAX_FUNCTIONS - 1:
        if is_of_keys(one.function_id):
            ours[n] = one[0]
            n += 1
        one += 1
    keys[0] = OSSL_ALGORITHM(b"X25519", b"provider=fastderp", &ours[0], NULL)
    agreements[0] = OSSL_ALGORITHM(b"X25519", b"provider=fastderp", agreement, NULL)
