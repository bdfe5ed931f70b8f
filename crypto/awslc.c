/* AWS-LC behind the table of openssl.pxd: where its interface differs from OpenSSL's.

   build_crypto.py lists own_NAME where this file has it, and the library's NAME otherwise; the
   compiler compares each with the table's prototype. Numbers in `case` labels are OpenSSL's, as in
   openssl.pxd. Any thread, as the library itself.
*/

#include <string.h>

#include <openssl/aead.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

typedef struct tm tm; /* as in openssl.pxd */

/* Other integers: the table's `int` is no `size_t` in a register. */

static unsigned long own_ERR_get_error(void) { return ERR_get_error(); }
static const char *own_ERR_reason_error_string(unsigned long code) {
    return ERR_reason_error_string((uint32_t)code);
}
static BIO *own_BIO_new_mem_buf(const void *data, int n) { return BIO_new_mem_buf(data, n); }
static int own_OPENSSL_sk_num(const OPENSSL_STACK *stack) { return (int)OPENSSL_sk_num(stack); }
static void *own_OPENSSL_sk_value(const OPENSSL_STACK *stack, int i) {
    return OPENSSL_sk_value(stack, (size_t)i);
}

static int own_X509_NAME_add_entry_by_NID(X509_NAME *name, int nid, int type, const uint8_t *data,
                                          int n, int place, int set) {
    return X509_NAME_add_entry_by_NID(name, nid, type, data, n, place, set);
}

/* Other numbers. */

#define OPENSSL_NID_X25519 1034
#define OPENSSL_NID_ED25519 1087
#define OPENSSL_ERROR_WANT_CLIENT_HELLO_CB 11

static int key_type(int type) {
    switch (type) {
    case OPENSSL_NID_X25519: return EVP_PKEY_X25519;
    case OPENSSL_NID_ED25519: return EVP_PKEY_ED25519;
    default: return type;
    }
}

static EVP_PKEY *own_EVP_PKEY_new_raw_private_key(int type, void *engine, const uint8_t *key,
                                                  size_t n) {
    return EVP_PKEY_new_raw_private_key(key_type(type), engine, key, n);
}

static EVP_PKEY *own_EVP_PKEY_new_raw_public_key(int type, void *engine, const uint8_t *key,
                                                 size_t n) {
    return EVP_PKEY_new_raw_public_key(key_type(type), engine, key, n);
}

static int own_SSL_get_error(const SSL *ssl, int result) {
    int error = SSL_get_error(ssl, result);
    return error == SSL_ERROR_PENDING_CERTIFICATE ? OPENSSL_ERROR_WANT_CLIENT_HELLO_CB : error;
}

/* It never compresses or renegotiates; on_select does what SSL_OP_PRIORITIZE_CHACHA asks for. */
static uint64_t own_SSL_CTX_set_options(SSL_CTX *context, uint64_t options) {
    options &= SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE;
    return SSL_CTX_set_options(context, (uint32_t)options);
}

/* Functions in place of control numbers. */

static long own_SSL_CTX_ctrl(SSL_CTX *context, int command, long n, void *data) {
    switch (command) {
    case 14: return SSL_CTX_add_extra_chain_cert(context, data);
    case 33: return SSL_CTX_set_mode(context, (uint32_t)n & SSL_MODE_NO_AUTO_CHAIN);
    case 44: return SSL_CTX_set_session_cache_mode(context, (int)n);
    case 54: return SSL_CTX_set_tlsext_servername_arg(context, data);
    case 123: return SSL_CTX_set_min_proto_version(context, (uint16_t)n);
    case 124: return SSL_CTX_set_max_proto_version(context, (uint16_t)n);
    default: return 0;
    }
}

static long own_SSL_CTX_callback_ctrl(SSL_CTX *context, int command,
                                      int (*callback)(SSL *, int *, void *)) {
    return command == 53 ? SSL_CTX_set_tlsext_servername_callback(context, callback) : 0;
}

static long own_SSL_ctrl(SSL *ssl, int command, long n, void *data) {
    switch (command) {
    /* SSL_MODE_RELEASE_BUFFERS is what it does anyway. */
    case 33: return SSL_set_mode(ssl, (uint32_t)n & SSL_MODE_NO_AUTO_CHAIN);
    case 55: return SSL_set_tlsext_host_name(ssl, data);
    default: return 0;
    }
}

/* Other defaults. */

static SSL_CTX *own_SSL_CTX_new(const SSL_METHOD *method) {
    /* The default, with Ed25519 and without SHA-1. */
    static const uint16_t accepted[] = {
        SSL_SIGN_ECDSA_SECP256R1_SHA256, SSL_SIGN_ED25519,
        SSL_SIGN_RSA_PSS_RSAE_SHA256,    SSL_SIGN_RSA_PKCS1_SHA256,
        SSL_SIGN_ECDSA_SECP384R1_SHA384, SSL_SIGN_RSA_PSS_RSAE_SHA384,
        SSL_SIGN_RSA_PKCS1_SHA384,       SSL_SIGN_ECDSA_SECP521R1_SHA512,
        SSL_SIGN_RSA_PSS_RSAE_SHA512,    SSL_SIGN_RSA_PKCS1_SHA512,
    };
    static const size_t n_accepted = sizeof(accepted) / sizeof(*accepted);
    SSL_CTX *context = SSL_CTX_new(method);
    if (context == NULL)
        return NULL;
    if (!SSL_CTX_set_verify_algorithm_prefs(context, accepted, n_accepted)) {
        SSL_CTX_free(context);
        return NULL;
    }
    /* Trust a given certificate although it is no authority, as a relay's self-signed one. OpenSSL
       takes it for its own issuer; AWS-LC does so only if its key usage allows it. */
    X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context), X509_V_FLAG_PARTIAL_CHAIN);
    return context;
}

/* A ClientHello that waits for its context, and the suite it gets. */

/* Set by on_hello for on_select, which is called next, by the same thread. */
static __thread int hello_waits;

/* The client's order decides between the suites of TLS 1.3, ours between those of 1.2. Prefer
   ChaCha20 where the client puts it first, and AES-128 otherwise. */
static int on_select_suite(const SSL_CLIENT_HELLO *hello) {
    int first = 0, aes_128 = 0;
    for (size_t i = 0; i + 1 < hello->cipher_suites_len; i += 2) {
        int suite = hello->cipher_suites[i] << 8 | hello->cipher_suites[i + 1];
        int chacha = suite == 0x1303 || suite == 0xcca8 || suite == 0xcca9;
        int aes = suite == 0x1301 || suite == 0x1302 || suite >> 4 == 0xc02 || suite == 0xc030;
        if (!first && (chacha || aes))
            first = chacha ? 0x1303 : suite;
        aes_128 |= suite == 0x1301;
    }
    if (first == 0x1303)
        SSL_clear_options(hello->ssl, SSL_OP_CIPHER_SERVER_PREFERENCE);
    else if (first == 0x1302 && aes_128)
        return SSL_set_ciphersuites(hello->ssl, "TLS_AES_128_GCM_SHA256");
    return 1;
}

static enum ssl_select_cert_result_t on_select(const SSL_CLIENT_HELLO *hello) {
    int waits = hello_waits;
    hello_waits = 0;
    if (waits)
        return ssl_select_cert_retry;
    return on_select_suite(hello) ? ssl_select_cert_success : ssl_select_cert_error;
}

/* Leave a caller's own order alone: only ours begins with AES-128. */
static int own_SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *names) {
    if (strncmp(names, "TLS_AES_128_GCM_SHA256", 22) == 0)
        SSL_CTX_set_select_certificate_cb(context, on_select);
    return SSL_CTX_set_ciphersuites(context, names);
}

/* AWS-LC's callback of this name can give the alert but not pause the handshake; on_select can. */
static int on_hello(SSL *ssl, int *alert, void *callback) {
    int result = ((int (*)(SSL *, int *, void *))callback)(ssl, alert, NULL);
    hello_waits = result == -1; /* SSL_CLIENT_HELLO_RETRY */
    return hello_waits ? SSL_CLIENT_HELLO_SUCCESS : result;
}

static void own_SSL_CTX_set_client_hello_cb(SSL_CTX *context,
                                            int (*callback)(SSL *, int *, void *),
                                            void *argument) {
    (void)argument; /* context.pyx has none */
    SSL_CTX_set_client_hello_cb(context, on_hello, (void *)callback);
    SSL_CTX_set_select_certificate_cb(context, on_select);
}
