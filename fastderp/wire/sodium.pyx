"""NaCl's box by the C functions of PyNaCl's libsodium (PROTOCOL §1, §3).

A login opens one box and seals one. PyNaCl's own functions take longer for their checks and copies
than libsodium takes for the boxes. The library is opened without a run of PyNaCl's module, whose
bindings need 0.3 MiB of cffi. Any thread. sodium.pyi describes the interface.
"""

from libc.stdint cimport uint8_t, uintptr_t
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlopen, dlsym
from cpython.bytes cimport PyBytes_FromStringAndSize

import os
from importlib.machinery import PathFinder

import nacl

cdef enum:
    KEY = 32        # bytes of a private, public or shared key
    NONCE = 24
    TAG = 16

ctypedef int (*agree_function)(
    uint8_t* shared, const uint8_t* public, const uint8_t* private) noexcept nogil
ctypedef int (*box_function)(
    uint8_t* to, const uint8_t* source, unsigned long long n, const uint8_t* nonce,
    const uint8_t* shared) noexcept nogil
ctypedef int (*public_function)(uint8_t* public, const uint8_t* private) noexcept nogil
ctypedef int (*compare_function)(const void* one, const void* other, size_t n) noexcept nogil

ctypedef int (*init_function)() noexcept nogil

cdef void* opened():
    """Open the file of the module nacl._sodium, which contains libsodium or is linked with it."""
    found = PathFinder.find_spec("nacl._sodium", nacl.__path__)
    if found is None:
        return NULL
    path = os.fsencode(found.origin)
    return dlopen(path, RTLD_NOW | RTLD_LOCAL)


cdef void* address_of(name) except NULL:
    cdef bytes symbol = name.encode()
    cdef void* function = dlsym(libsodium, symbol) if libsodium is not NULL else NULL
    if function is NULL:         # a build of PyNaCl that hides its symbols
        from nacl._sodium import ffi, lib

        function = <void*><uintptr_t>int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
    return function


cdef void* libsodium = opened()
cdef agree_function crypto_box_beforenm = <agree_function>address_of("crypto_box_beforenm")
cdef box_function crypto_box_easy = <box_function>address_of("crypto_box_easy_afternm")
cdef box_function crypto_box_open_easy = <box_function>address_of("crypto_box_open_easy_afternm")
cdef public_function crypto_scalarmult_base = <public_function>address_of("crypto_scalarmult_base")
cdef compare_function sodium_memcmp = <compare_function>address_of("sodium_memcmp")

if (<init_function>address_of("sodium_init"))() < 0:
    raise ImportError("libsodium cannot be used: sodium_init has failed")


def shared_key(bytes public not None, bytes private not None):
    """See sodium.pyi."""
    cdef uint8_t[KEY] shared
    cdef const uint8_t* theirs = public
    cdef const uint8_t* ours = private
    cdef int failed
    check(len(public) == KEY and len(private) == KEY)
    with nogil:
        failed = crypto_box_beforenm(shared, theirs, ours)
    return None if failed else PyBytes_FromStringAndSize(<char*>shared, KEY)


def seal(bytes shared not None, bytes nonce not None, bytes message not None):
    """See sodium.pyi."""
    cdef Py_ssize_t n = len(message)
    cdef bytes sealed
    cdef uint8_t* to
    check(len(shared) == KEY and len(nonce) == NONCE)
    sealed = PyBytes_FromStringAndSize(NULL, n + TAG)
    to = <uint8_t*><char*>sealed    # not shared until returned
    crypto_box_easy(
        to, <const uint8_t*><const char*>message, n, <const uint8_t*><const char*>nonce,
        <const uint8_t*><const char*>shared)
    return sealed


def open_sealed(bytes shared not None, bytes nonce not None, bytes sealed not None):
    """See sodium.pyi."""
    cdef Py_ssize_t n = len(sealed)
    cdef bytes message
    cdef uint8_t* to
    check(len(shared) == KEY)
    if len(nonce) != NONCE or n < TAG:
        return None
    message = PyBytes_FromStringAndSize(NULL, n - TAG)
    to = <uint8_t*><char*>message    # not shared until returned
    if crypto_box_open_easy(
        to, <const uint8_t*><const char*>sealed, n, <const uint8_t*><const char*>nonce,
        <const uint8_t*><const char*>shared
    ):
        return None
    return message


cdef void public_key_write(uint8_t* public, const uint8_t* private) noexcept nogil:
    crypto_scalarmult_base(public, private)


def public_key(bytes private not None):
    """See sodium.pyi."""
    cdef uint8_t[KEY] public
    check(len(private) == KEY)
    crypto_scalarmult_base(public, <const uint8_t*><const char*>private)
    return PyBytes_FromStringAndSize(<char*>public, KEY)


def are_equal(bytes one not None, bytes other not None):
    """See sodium.pyi."""
    check(len(one) == KEY and len(other) == KEY)
    return sodium_memcmp(<const char*>one, <const char*>other, KEY) == 0


cdef int check(bint sizes_are_right) except -1:
    if not sizes_are_right:
        raise ValueError(f"a key has {KEY} bytes, a nonce {NONCE}")
    return 0
