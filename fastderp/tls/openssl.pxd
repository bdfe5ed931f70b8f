# The functions of libcrypto and libssl that this package calls, as pointers that openssl.pyx finds
# at run time. No other file declares OpenSSL's interface; there is no link-time dependency.
# crypto/build_crypto.py reads this file: it lists these functions of the library that wheels bring.
# Numbers are those of OpenSSL's public headers, part of its ABI from 1.1.1 on.

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.time cimport time_t, tm


# Opaque structs.
cdef extern from *:
    """
    typedef struct fastderp_evp_cipher EVP_CIPHER;
    typedef struct fastderp_evp_cipher_ctx EVP_CIPHER_CTX;
    typedef struct fastderp_evp_aead EVP_AEAD;
    typedef struct fastderp_evp_aead_ctx EVP_AEAD_CTX;
    typedef struct fastderp_evp_md EVP_MD;
    typedef struct fastderp_sha256_ctx SHA256_CTX;
    typedef struct fastderp_sha512_ctx SHA512_CTX;
    typedef struct fastderp_evp_pkey EVP_PKEY;
    typedef struct fastderp_evp_pkey_ctx EVP_PKEY_CTX;
    typedef struct fastderp_x509 X509;
    typedef struct fastderp_x509_name X509_NAME;
    typedef struct fastderp_x509_store X509_STORE;
    typedef struct fastderp_x509_param X509_VERIFY_PARAM;
    typedef struct fastderp_x509_extension X509_EXTENSION;
    typedef struct fastderp_x509_pubkey X509_PUBKEY;
    typedef struct fastderp_x509_algor X509_ALGOR;
    typedef struct fastderp_general_name GENERAL_NAME;
    typedef struct fastderp_asn1_time ASN1_TIME;
    typedef struct fastderp_asn1_object ASN1_OBJECT;
    typedef struct fastderp_asn1_string ASN1_STRING;
    typedef struct fastderp_asn1_string ASN1_INTEGER;
    typedef struct fastderp_stack OPENSSL_STACK;
    typedef struct fastderp_bio BIO;
    typedef struct fastderp_bio_method BIO_METHOD;
    typedef struct fastderp_ssl SSL;
    typedef struct fastderp_ssl_ctx SSL_CTX;
    typedef struct fastderp_ssl_method SSL_METHOD;
    typedef struct fastderp_ssl_cipher SSL_CIPHER;
    """
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_AEAD
    ctypedef struct EVP_AEAD_CTX
    ctypedef struct EVP_MD
    ctypedef struct SHA256_CTX
    ctypedef struct SHA512_CTX
    ctypedef struct EVP_PKEY
    ctypedef struct EVP_PKEY_CTX
    ctypedef struct X509
    ctypedef struct X509_NAME
    ctypedef struct X509_STORE
    ctypedef struct X509_VERIFY_PARAM
    ctypedef struct X509_EXTENSION
    ctypedef struct X509_PUBKEY
    ctypedef struct X509_ALGOR
    ctypedef struct GENERAL_NAME
    ctypedef struct ASN1_TIME
    ctypedef struct ASN1_OBJECT
    ctypedef struct ASN1_STRING
    ctypedef struct ASN1_INTEGER
    ctypedef struct OPENSSL_STACK
    ctypedef struct BIO
    ctypedef struct BIO_METHOD
    ctypedef struct SSL
    ctypedef struct SSL_CTX
    ctypedef struct SSL_METHOD
    ctypedef struct SSL_CIPHER


cdef enum:
    EVP_CTRL_AEAD_GET_TAG = 0x10
    EVP_CTRL_AEAD_SET_TAG = 0x11

    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_ZERO_RETURN = 6
    SSL_ERROR_WANT_CLIENT_HELLO_CB = 11
    SSL_CLIENT_HELLO_RETRY = -1
    SSL_CLIENT_HELLO_ERROR = 0
    TLSEXT_TYPE_server_name = 0
    TLSEXT_TYPE_alpn = 16

    SSL_CTRL_EXTRA_CHAIN_CERT = 14
    SSL_CTRL_MODE = 33
    SSL_CTRL_SET_SESS_CACHE_MODE = 44
    SSL_CTRL_SET_TLSEXT_SERVERNAME_CB = 53
    SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG = 54
    SSL_CTRL_SET_TLSEXT_HOSTNAME = 55
    SSL_CTRL_SET_MIN_PROTO_VERSION = 123
    SSL_CTRL_SET_MAX_PROTO_VERSION = 124

    SSL_MODE_NO_AUTO_CHAIN = 8
    SSL_MODE_RELEASE_BUFFERS = 16
    SSL_SESS_CACHE_OFF = 0
    SSL_VERIFY_NONE = 0
    SSL_VERIFY_PEER = 1
    TLS1_2_VERSION = 0x0303
    TLS1_3_VERSION = 0x0304

    SSL_OP_NO_TICKET = 1 << 14
    SSL_OP_NO_COMPRESSION = 1 << 17
    SSL_OP_PRIORITIZE_CHACHA = 1 << 21
    SSL_OP_CIPHER_SERVER_PREFERENCE = 1 << 22
    SSL_OP_NO_RENEGOTIATION = 1 << 30

    SSL_TLSEXT_ERR_OK = 0
    SSL_TLSEXT_ERR_ALERT_FATAL = 2
    SSL_AD_DECODE_ERROR = 50
    SSL_AD_INTERNAL_ERROR = 80
    SSL_AD_UNRECOGNIZED_NAME = 112

    BIO_CTRL_PENDING = 10
    X509_CHECK_FLAG_NEVER_CHECK_SUBJECT = 0x20
    X509_VERSION_3 = 2
    NID_COMMON_NAME = 13
    NID_KEY_USAGE = 83
    NID_SUBJECT_ALT_NAME = 85
    NID_BASIC_CONSTRAINTS = 87
    NID_EXT_KEY_USAGE = 126
    NID_X25519 = 1034
    NID_ED25519 = 1087
    EVP_PKEY_EC = 408
    V_ASN1_OBJECT = 6
    V_ASN1_UTF8STRING = 12
    GEN_DNS = 2
    GEN_IPADD = 7


# Providers of OpenSSL 3 (crypto.h, core.h, core_dispatch.h, kdf.h).
cdef enum:
    OPENSSL_INIT_LOAD_CONFIG = 0x40
    OSSL_OP_KDF = 4
    OSSL_OP_KEYMGMT = 10
    OSSL_OP_KEYEXCH = 11
    OSSL_FUNC_PROVIDER_TEARDOWN = 1024
    OSSL_FUNC_PROVIDER_QUERY_OPERATION = 1027
    OSSL_FUNC_PROVIDER_GET_CAPABILITIES = 1030
    OSSL_FUNC_KEYMGMT_NEW = 1
    OSSL_FUNC_KEYMGMT_GEN_INIT = 2
    OSSL_FUNC_KEYMGMT_GEN_SET_PARAMS = 4
    OSSL_FUNC_KEYMGMT_GEN_SETTABLE_PARAMS = 5
    OSSL_FUNC_KEYMGMT_GEN = 6
    OSSL_FUNC_KEYMGMT_GEN_CLEANUP = 7
    OSSL_FUNC_KEYMGMT_LOAD = 8
    OSSL_FUNC_KEYMGMT_FREE = 10
    OSSL_FUNC_KEYMGMT_SETTABLE_PARAMS = 14
    OSSL_FUNC_KEYMGMT_QUERY_OPERATION_NAME = 20
    OSSL_FUNC_KEYMGMT_IMPORT = 40
    OSSL_FUNC_KEYMGMT_DUP = 44
    OSSL_KEYMGMT_SELECT_KEYPAIR = 3
    OSSL_PARAM_OCTET_STRING = 5
    OSSL_FUNC_KDF_NEWCTX = 1
    OSSL_FUNC_KDF_FREECTX = 3
    OSSL_FUNC_KDF_DERIVE = 5
    EVP_KDF_HKDF_MODE_EXTRACT_ONLY = 1
    EVP_KDF_HKDF_MODE_EXPAND_ONLY = 2

ctypedef void (*OSSLFunction)() noexcept nogil

cdef struct OSSL_DISPATCH:
    int function_id              # 0 ends a list
    OSSLFunction function

cdef struct OSSL_ALGORITHM:
    const char* algorithm_names  # NULL ends a list
    const char* property_definition
    const OSSL_DISPATCH* implementation
    const char* algorithm_description

cdef struct OSSL_PARAM:
    const char* key              # NULL ends a list
    unsigned int data_type
    void* data
    size_t data_size
    size_t return_size

ctypedef int (*ParameterCallback)(const OSSL_PARAM*, void*) noexcept nogil


ctypedef void (*KeylogCallback)(const SSL*, const char*) noexcept nogil
ctypedef int (*ServerNameCallback)(SSL*, int*, void*) noexcept nogil
ctypedef int (*ClientHelloCallback)(SSL*, int*, void*) noexcept nogil
ctypedef int (*AlpnCallback)(
    SSL*, const uint8_t**, uint8_t*, const uint8_t*, unsigned int, void*
) noexcept nogil


cdef struct Crypto:
    unsigned long (*OpenSSL_version_num)() noexcept nogil
    const char* (*OpenSSL_version)(int) noexcept nogil
    void (*OPENSSL_cleanse)(void*, size_t) noexcept nogil

    # NULL before OpenSSL 3.
    EVP_CIPHER* (*EVP_CIPHER_fetch)(void*, const char*, const char*) noexcept nogil
    const EVP_CIPHER* (*EVP_aes_128_gcm)() noexcept nogil
    const EVP_CIPHER* (*EVP_aes_256_gcm)() noexcept nogil
    const EVP_CIPHER* (*EVP_chacha20_poly1305)() noexcept nogil
    EVP_CIPHER_CTX* (*EVP_CIPHER_CTX_new)() noexcept nogil
    void (*EVP_CIPHER_CTX_free)(EVP_CIPHER_CTX*) noexcept nogil
    int (*EVP_CIPHER_CTX_ctrl)(EVP_CIPHER_CTX*, int, int, void*) noexcept nogil
    int (*EVP_CipherInit_ex)(
        EVP_CIPHER_CTX*, const EVP_CIPHER*, void*, const uint8_t*, const uint8_t*, int
    ) noexcept nogil
    int (*EVP_CipherUpdate)(EVP_CIPHER_CTX*, uint8_t*, int*, const uint8_t*, int) noexcept nogil
    int (*EVP_CipherFinal_ex)(EVP_CIPHER_CTX*, uint8_t*, int*) noexcept nogil

    # AWS-LC's one call per record; NULL in OpenSSL.
    const EVP_AEAD* (*EVP_aead_chacha20_poly1305)() noexcept nogil
    EVP_AEAD_CTX* (*EVP_AEAD_CTX_new)(
        const EVP_AEAD*, const uint8_t*, size_t, size_t
    ) noexcept nogil
    void (*EVP_AEAD_CTX_free)(EVP_AEAD_CTX*) noexcept nogil
    int (*EVP_AEAD_CTX_seal)(
        const EVP_AEAD_CTX*, uint8_t*, size_t*, size_t, const uint8_t*, size_t, const uint8_t*,
        size_t, const uint8_t*, size_t
    ) noexcept nogil
    int (*EVP_AEAD_CTX_open)(
        const EVP_AEAD_CTX*, uint8_t*, size_t*, size_t, const uint8_t*, size_t, const uint8_t*,
        size_t, const uint8_t*, size_t
    ) noexcept nogil

    const EVP_MD* (*EVP_sha256)() noexcept nogil
    int (*SHA256_Init)(SHA256_CTX*) noexcept nogil
    int (*SHA256_Update)(SHA256_CTX*, const void*, size_t) noexcept nogil
    int (*SHA256_Final)(uint8_t*, SHA256_CTX*) noexcept nogil
    int (*SHA384_Init)(SHA512_CTX*) noexcept nogil
    int (*SHA384_Update)(SHA512_CTX*, const void*, size_t) noexcept nogil
    int (*SHA384_Final)(uint8_t*, SHA512_CTX*) noexcept nogil

    EVP_PKEY* (*EVP_PKEY_new_raw_private_key)(int, void*, const uint8_t*, size_t) noexcept nogil
    EVP_PKEY* (*EVP_PKEY_new_raw_public_key)(int, void*, const uint8_t*, size_t) noexcept nogil
    EVP_PKEY_CTX* (*EVP_PKEY_CTX_new)(EVP_PKEY*, void*) noexcept nogil
    void (*EVP_PKEY_CTX_free)(EVP_PKEY_CTX*) noexcept nogil
    int (*EVP_PKEY_derive_init)(EVP_PKEY_CTX*) noexcept nogil
    int (*EVP_PKEY_derive_set_peer)(EVP_PKEY_CTX*, EVP_PKEY*) noexcept nogil
    int (*EVP_PKEY_derive)(EVP_PKEY_CTX*, uint8_t*, size_t*) noexcept nogil

    unsigned long (*ERR_get_error)() noexcept nogil
    void (*ERR_clear_error)() noexcept nogil
    const char* (*ERR_reason_error_string)(unsigned long) noexcept nogil

    const BIO_METHOD* (*BIO_s_mem)() noexcept nogil
    BIO* (*BIO_new)(const BIO_METHOD*) noexcept nogil
    BIO* (*BIO_new_mem_buf)(const void*, int) noexcept nogil
    int (*BIO_free)(BIO*) noexcept nogil
    int (*BIO_read)(BIO*, void*, int) noexcept nogil
    int (*BIO_write)(BIO*, const void*, int) noexcept nogil
    long (*BIO_ctrl)(BIO*, int, long, void*) noexcept nogil

    X509* (*d2i_X509)(X509**, const uint8_t**, long) noexcept nogil
    int (*i2d_X509)(const X509*, uint8_t**) noexcept nogil
    void (*X509_free)(X509*) noexcept nogil
    const ASN1_TIME* (*X509_get0_notBefore)(const X509*) noexcept nogil
    const ASN1_TIME* (*X509_get0_notAfter)(const X509*) noexcept nogil
    int (*X509_cmp_current_time)(const ASN1_TIME*) noexcept nogil
    X509_NAME* (*X509_get_subject_name)(const X509*) noexcept nogil
    int (*X509_NAME_get_text_by_NID)(X509_NAME*, int, char*, int) noexcept nogil
    int (*X509_check_host)(X509*, const char*, size_t, unsigned int, char**) noexcept nogil
    int (*X509_STORE_add_cert)(X509_STORE*, X509*) noexcept nogil
    int (*X509_VERIFY_PARAM_set1_ip_asc)(X509_VERIFY_PARAM*, const char*) noexcept nogil
    int (*X509_VERIFY_PARAM_set1_host)(X509_VERIFY_PARAM*, const char*, size_t) noexcept nogil
    const char* (*X509_verify_cert_error_string)(long) noexcept nogil
    EVP_PKEY* (*d2i_AutoPrivateKey)(EVP_PKEY**, const uint8_t**, long) noexcept nogil
    EVP_PKEY* (*PEM_read_bio_PrivateKey)(BIO*, EVP_PKEY**, void*, void*) noexcept nogil
    void (*EVP_PKEY_free)(EVP_PKEY*) noexcept nogil
    int (*OPENSSL_sk_num)(const OPENSSL_STACK*) noexcept nogil
    void* (*OPENSSL_sk_value)(const OPENSSL_STACK*, int) noexcept nogil

    # Reading and making certificates: x509.pyx.
    X509* (*PEM_read_bio_X509)(BIO*, X509**, void*, void*) noexcept nogil
    X509_NAME* (*X509_get_issuer_name)(const X509*) noexcept nogil
    int (*X509_NAME_cmp)(const X509_NAME*, const X509_NAME*) noexcept nogil
    int (*ASN1_TIME_to_tm)(const ASN1_TIME*, tm*) noexcept nogil
    void* (*X509_get_ext_d2i)(const X509*, int, int*, int*) noexcept nogil
    void* (*GENERAL_NAME_get0_value)(const GENERAL_NAME*, int*) noexcept nogil
    void (*GENERAL_NAMES_free)(void*) noexcept nogil
    const uint8_t* (*ASN1_STRING_get0_data)(const ASN1_STRING*) noexcept nogil
    int (*ASN1_STRING_length)(const ASN1_STRING*) noexcept nogil
    X509_PUBKEY* (*X509_get_X509_PUBKEY)(const X509*) noexcept nogil
    int (*X509_PUBKEY_get0_param)(
        ASN1_OBJECT**, const uint8_t**, int*, X509_ALGOR**, X509_PUBKEY*
    ) noexcept nogil
    void (*X509_ALGOR_get0)(
        const ASN1_OBJECT**, int*, const void**, const X509_ALGOR*
    ) noexcept nogil
    int (*OBJ_obj2txt)(char*, int, const ASN1_OBJECT*, int) noexcept nogil
    int (*X509_check_private_key)(const X509*, const EVP_PKEY*) noexcept nogil
    int (*i2d_PrivateKey)(const EVP_PKEY*, uint8_t**) noexcept nogil

    EVP_PKEY_CTX* (*EVP_PKEY_CTX_new_id)(int, void*) noexcept nogil
    int (*EVP_PKEY_keygen_init)(EVP_PKEY_CTX*) noexcept nogil
    int (*EVP_PKEY_CTX_ctrl_str)(EVP_PKEY_CTX*, const char*, const char*) noexcept nogil
    int (*EVP_PKEY_keygen)(EVP_PKEY_CTX*, EVP_PKEY**) noexcept nogil
    X509* (*X509_new)() noexcept nogil
    int (*X509_set_version)(X509*, long) noexcept nogil
    ASN1_INTEGER* (*X509_get_serialNumber)(X509*) noexcept nogil
    int (*ASN1_INTEGER_set_uint64)(ASN1_INTEGER*, uint64_t) noexcept nogil
    ASN1_TIME* (*X509_getm_notBefore)(X509*) noexcept nogil
    ASN1_TIME* (*X509_getm_notAfter)(X509*) noexcept nogil
    ASN1_TIME* (*ASN1_TIME_set)(ASN1_TIME*, time_t) noexcept nogil
    int (*X509_NAME_add_entry_by_NID)(
        X509_NAME*, int, int, const uint8_t*, int, int, int
    ) noexcept nogil
    int (*X509_set_issuer_name)(X509*, X509_NAME*) noexcept nogil
    int (*X509_set_pubkey)(X509*, EVP_PKEY*) noexcept nogil
    X509_EXTENSION* (*X509V3_EXT_nconf_nid)(
        const void*, const void*, int, const char*
    ) noexcept nogil
    int (*X509_add_ext)(X509*, const X509_EXTENSION*, int) noexcept nogil
    void (*X509_EXTENSION_free)(X509_EXTENSION*) noexcept nogil
    int (*X509_sign)(X509*, EVP_PKEY*, const EVP_MD*) noexcept nogil

    # NULL before OpenSSL 3.
    int (*OSSL_PROVIDER_add_builtin)(void*, const char*, OSSLFunction) noexcept nogil
    void* (*OSSL_PROVIDER_try_load)(void*, const char*, int) noexcept nogil
    int (*OSSL_PROVIDER_available)(void*, const char*) noexcept nogil
    void* (*OSSL_PROVIDER_get0_provider_ctx)(const void*) noexcept nogil
    const OSSL_ALGORITHM* (*OSSL_PROVIDER_query_operation)(
        const void*, int, int*
    ) noexcept nogil
    int (*OSSL_PROVIDER_get_capabilities)(
        const void*, const char*, ParameterCallback, void*
    ) noexcept nogil
    int (*RAND_priv_bytes)(uint8_t*, int) noexcept nogil
    int (*EVP_default_properties_is_fips_enabled)(void*) noexcept nogil
    int (*OPENSSL_init_crypto)(uint64_t, void*) noexcept nogil


cdef struct Ssl:
    const SSL_METHOD* (*TLS_server_method)() noexcept nogil
    const SSL_METHOD* (*TLS_client_method)() noexcept nogil
    SSL_CTX* (*SSL_CTX_new)(const SSL_METHOD*) noexcept nogil
    # NULL before OpenSSL 3.
    SSL_CTX* (*SSL_CTX_new_ex)(void*, const char*, const SSL_METHOD*) noexcept nogil
    void (*SSL_CTX_free)(SSL_CTX*) noexcept nogil
    long (*SSL_CTX_ctrl)(SSL_CTX*, int, long, void*) noexcept nogil
    long (*SSL_CTX_callback_ctrl)(SSL_CTX*, int, ServerNameCallback) noexcept nogil
    uint64_t (*SSL_CTX_set_options)(SSL_CTX*, uint64_t) noexcept nogil
    int (*SSL_CTX_set_num_tickets)(SSL_CTX*, size_t) noexcept nogil
    int (*SSL_CTX_set_cipher_list)(SSL_CTX*, const char*) noexcept nogil
    int (*SSL_CTX_set_ciphersuites)(SSL_CTX*, const char*) noexcept nogil
    void (*SSL_CTX_set_keylog_callback)(SSL_CTX*, KeylogCallback) noexcept nogil
    void (*SSL_CTX_set_alpn_select_cb)(SSL_CTX*, AlpnCallback, void*) noexcept nogil
    void (*SSL_CTX_set_client_hello_cb)(SSL_CTX*, ClientHelloCallback, void*) noexcept nogil
    int (*SSL_CTX_use_certificate)(SSL_CTX*, X509*) noexcept nogil
    int (*SSL_CTX_use_PrivateKey)(SSL_CTX*, EVP_PKEY*) noexcept nogil
    int (*SSL_CTX_check_private_key)(const SSL_CTX*) noexcept nogil
    void (*SSL_CTX_set_verify)(SSL_CTX*, int, void*) noexcept nogil
    int (*SSL_CTX_set_default_verify_paths)(SSL_CTX*) noexcept nogil
    int (*SSL_CTX_load_verify_locations)(SSL_CTX*, const char*, const char*) noexcept nogil
    X509_STORE* (*SSL_CTX_get_cert_store)(const SSL_CTX*) noexcept nogil

    SSL* (*SSL_new)(SSL_CTX*) noexcept nogil
    void (*SSL_free)(SSL*) noexcept nogil
    SSL_CTX* (*SSL_set_SSL_CTX)(SSL*, SSL_CTX*) noexcept nogil
    int (*SSL_client_hello_get0_ext)(SSL*, unsigned int, const uint8_t**, size_t*) noexcept nogil
    void (*SSL_set_bio)(SSL*, BIO*, BIO*) noexcept nogil
    void (*SSL_set_accept_state)(SSL*) noexcept nogil
    void (*SSL_set_connect_state)(SSL*) noexcept nogil
    long (*SSL_ctrl)(SSL*, int, long, void*) noexcept nogil
    int (*SSL_set_ex_data)(SSL*, int, void*) noexcept nogil
    void* (*SSL_get_ex_data)(const SSL*, int) noexcept nogil
    int (*SSL_do_handshake)(SSL*) noexcept nogil
    int (*SSL_read)(SSL*, void*, int) noexcept nogil
    int (*SSL_write)(SSL*, const void*, int) noexcept nogil
    int (*SSL_shutdown)(SSL*) noexcept nogil
    int (*SSL_has_pending)(const SSL*) noexcept nogil
    int (*SSL_get_error)(const SSL*, int) noexcept nogil
    int (*SSL_version)(const SSL*) noexcept nogil
    const SSL_CIPHER* (*SSL_get_current_cipher)(const SSL*) noexcept nogil
    const char* (*SSL_CIPHER_get_name)(const SSL_CIPHER*) noexcept nogil
    uint16_t (*SSL_CIPHER_get_protocol_id)(const SSL_CIPHER*) noexcept nogil
    const char* (*SSL_get_servername)(const SSL*, int) noexcept nogil
    void (*SSL_get0_alpn_selected)(const SSL*, const uint8_t**, unsigned int*) noexcept nogil
    OPENSSL_STACK* (*SSL_get_peer_cert_chain)(const SSL*) noexcept nogil
    long (*SSL_get_verify_result)(const SSL*) noexcept nogil
    X509_VERIFY_PARAM* (*SSL_get0_param)(SSL*) noexcept nogil


# Filled when the module is imported and constant from then on.
cdef Crypto crypto
cdef Ssl ssl
