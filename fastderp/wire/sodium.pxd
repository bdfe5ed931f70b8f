# libsodium's functions for compiled modules; sodium.pyi describes those for Python.

from libc.stdint cimport uint8_t

# Write the 32 bytes of the public half of a private X25519 key.
cdef void public_key_write(uint8_t* public, const uint8_t* private) noexcept nogil
