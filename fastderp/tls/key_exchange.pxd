# X25519 for the provider of key_schedule.pyx: OpenSSL's own, with key pairs from libsodium.

from fastderp.tls.openssl cimport OSSL_ALGORITHM, ParameterCallback

# Take OpenSSL's functions over; without them there are no algorithms. Called once, at the import.
cdef void key_exchange_init() noexcept nogil

# The context that a provider with these algorithms must have; NULL before key_exchange_init.
cdef void* key_exchange_context() noexcept nogil

# The algorithms for a kind of operation; NULL for other kinds, and when OpenSSL has no such ones.
cdef const OSSL_ALGORITHM* key_exchange_algorithms(int operation) noexcept nogil

# Describe the group to libssl (provider-base(7), TLS-GROUP). Returns 1 unless the callback fails.
cdef int key_exchange_group(ParameterCallback callback, void* argument) noexcept nogil
