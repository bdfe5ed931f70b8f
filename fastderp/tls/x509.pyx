"""X.509 certificates and their keys: reads them from PEM, and makes self-signed ones.

Control plane. Every result is a copy, and a PrivateKey never changes: any thread may use them.
"""

from libc.stdint cimport uint8_t
from libc.time cimport time_t, tm

from fastderp.tls.context cimport (
    certificate_from_der, certificate_to_der, der_room, first_reason, key_from_bytes, sha256,
)
from fastderp.tls.openssl cimport (
    ASN1_OBJECT, ASN1_STRING, ASN1_TIME, BIO, EVP_MD, EVP_PKEY, EVP_PKEY_CTX, EVP_PKEY_EC,
    GEN_DNS, GEN_IPADD, GENERAL_NAME, NID_BASIC_CONSTRAINTS, NID_COMMON_NAME, NID_ED25519,
    NID_EXT_KEY_USAGE, NID_KEY_USAGE, NID_SUBJECT_ALT_NAME, OPENSSL_STACK, V_ASN1_OBJECT,
    V_ASN1_UTF8STRING, X509, X509_ALGOR, X509_EXTENSION, X509_NAME, X509_VERSION_3, crypto,
)
from fastderp.tls.sys cimport timegm

import os
from typing import NamedTuple

from fastderp.tls.errors import TlsError

EXTENSIONS = {
    "keyUsage": NID_KEY_USAGE,
    "subjectAltName": NID_SUBJECT_ALT_NAME,
    "basicConstraints": NID_BASIC_CONSTRAINTS,
    "extendedKeyUsage": NID_EXT_KEY_USAGE,
}


class Leaf(NamedTuple):
    # See x509.pyi.
    sha256: bytes
    dns_names: list
    addresses: list
    not_before: int
    not_after: int
    key_type: str
    is_self_signed: bool


def chain_from_pem(bytes pem not None) -> list[bytes]:
    # See x509.pyi.
    cdef BIO* bio = crypto.BIO_new_mem_buf(<const uint8_t*>pem, <int>len(pem))
    cdef X509* certificate
    if bio is NULL:
        raise MemoryError
    chain = []
    crypto.ERR_clear_error()
    try:
        while True:
            certificate = crypto.PEM_read_bio_X509(bio, NULL, NULL, <void*><char*> "")
            if certificate is NULL:
                break
            try:
                chain.append(certificate_to_der(certificate))
            finally:
                crypto.X509_free(certificate)
    finally:
        crypto.BIO_free(bio)
    reason = first_reason()
    if not chain or reason != "no start line":  # which the end of the text is
        raise TlsError("certificate", f"not a PEM certificate chain: {reason}")
    return chain


def read_leaf(bytes der not None) -> Leaf:
    # See x509.pyi.
    cdef X509* certificate = certificate_from_der(der)
    try:
        names, addresses = alternative_names(certificate)
        return Leaf(
            sha256(der),
            names,
            addresses,
            time_from_asn1(crypto.X509_get0_notBefore(certificate)),
            time_from_asn1(crypto.X509_get0_notAfter(certificate)),
            key_type(certificate),
            crypto.X509_NAME_cmp(
                crypto.X509_get_issuer_name(certificate), crypto.X509_get_subject_name(certificate)
            ) == 0,
        )
    finally:
        crypto.X509_free(certificate)


cdef tuple alternative_names(X509* certificate):
    """Return the DNS names as text and the addresses in network order; both may be empty."""
    cdef int critical = 0
    cdef int kind = 0
    cdef int i
    cdef const GENERAL_NAME* entry
    cdef const ASN1_STRING* value
    cdef OPENSSL_STACK* entries = <OPENSSL_STACK*>crypto.X509_get_ext_d2i(
        certificate, NID_SUBJECT_ALT_NAME, &critical, NULL
    )
    if entries is NULL:
        if critical == -1:  # there is none; -2 is for several, others for a malformed one
            return [], []
        raise TlsError("certificate", f"malformed subjectAltName: {first_reason()}")
    names, addresses = [], []
    try:
        for i in range(crypto.OPENSSL_sk_num(entries)):
            entry = <const GENERAL_NAME*>crypto.OPENSSL_sk_value(entries, i)
            value = <const ASN1_STRING*>crypto.GENERAL_NAME_get0_value(entry, &kind)
            if kind == GEN_DNS:
                names.append(string_bytes(value).decode("ascii", "backslashreplace"))
            elif kind == GEN_IPADD:
                addresses.append(string_bytes(value))
    finally:
        crypto.GENERAL_NAMES_free(entries)
    return names, addresses


cdef bytes string_bytes(const ASN1_STRING* value):
    return (<const char*>crypto.ASN1_STRING_get0_data(value))[:crypto.ASN1_STRING_length(value)]


cdef object time_from_asn1(const ASN1_TIME* time):
    """Return a Unix time."""
    cdef tm parts
    if not crypto.ASN1_TIME_to_tm(time, &parts):
        raise TlsError("certificate", f"malformed time of validity: {first_reason()}")
    return timegm(&parts)


cdef str key_type(X509* certificate):
    """Return the name of the public key's curve, or of its algorithm where it has none."""
    cdef ASN1_OBJECT* algorithm = NULL
    cdef X509_ALGOR* identifier = NULL
    cdef const ASN1_OBJECT* again = NULL
    cdef const void* parameter = NULL
    cdef int kind = 0
    crypto.X509_PUBKEY_get0_param(
        &algorithm, NULL, NULL, &identifier, crypto.X509_get_X509_PUBKEY(certificate)
    )
    crypto.X509_ALGOR_get0(&again, &kind, &parameter, identifier)
    return object_name(<const ASN1_OBJECT*>parameter if kind == V_ASN1_OBJECT else algorithm)


cdef str object_name(const ASN1_OBJECT* identifier):
    cdef char text[80]
    crypto.OBJ_obj2txt(text, sizeof(text), identifier, 0)
    return text.decode("ascii")


cdef class PrivateKey:
    """See x509.pyi."""

    cdef EVP_PKEY* key

    def __dealloc__(self):
        if self.key is not NULL:
            crypto.EVP_PKEY_free(self.key)

    @staticmethod
    def from_pem(bytes pem not None) -> PrivateKey:
        # See x509.pyi.
        if b"-----BEGIN" not in pem:
            raise TlsError("certificate", "not a PEM private key")
        crypto.ERR_clear_error()
        return private_key(key_from_bytes(pem))

    @staticmethod
    def generate_p256() -> PrivateKey:
        # See x509.pyi.
        cdef EVP_PKEY* key = NULL
        cdef EVP_PKEY_CTX* generator = crypto.EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL)
        cdef bint ok
        if generator is NULL:
            raise MemoryError
        ok = (
            crypto.EVP_PKEY_keygen_init(generator) > 0
            and crypto.EVP_PKEY_CTX_ctrl_str(generator, b"ec_paramgen_curve", b"P-256") > 0
            and crypto.EVP_PKEY_keygen(generator, &key) > 0
        )
        crypto.EVP_PKEY_CTX_free(generator)
        if not ok:
            raise TlsError("certificate", f"cannot generate a P-256 key: {first_reason()}")
        return private_key(key)

    @staticmethod
    def generate_ed25519() -> PrivateKey:
        # See x509.pyi.
        cdef bytes seed = os.urandom(32)
        cdef EVP_PKEY* key = crypto.EVP_PKEY_new_raw_private_key(
            NID_ED25519, NULL, <const uint8_t*>seed, 32
        )
        if key is NULL:
            raise TlsError("certificate", f"cannot generate an Ed25519 key: {first_reason()}")
        return private_key(key)

    def der(self) -> bytes:
        # See x509.pyi.
        cdef bytearray der = der_room(crypto.i2d_PrivateKey(self.key, NULL), "the private key")
        cdef uint8_t* out = der    # i2d advances it
        crypto.i2d_PrivateKey(self.key, &out)
        return bytes(der)

    def belongs_to(self, bytes der not None) -> bool:
        # See x509.pyi.
        cdef X509* certificate = certificate_from_der(der)
        cdef bint belongs = crypto.X509_check_private_key(certificate, self.key) == 1
        crypto.X509_free(certificate)
        crypto.ERR_clear_error()
        return belongs

    def self_signed(self, str common_name not None, *, serial, not_before, not_after,
                    extensions) -> bytes:
        # See x509.pyi.
        cdef X509* certificate = crypto.X509_new()
        cdef const EVP_MD* digest = NULL    # Ed25519 takes no separate hash
        if certificate is NULL:
            raise MemoryError
        crypto.ERR_clear_error()
        try:
            self._fill(certificate, common_name.encode(), serial, not_before, not_after)
            for name, value in extensions.items():
                add_extension(certificate, EXTENSIONS[name], value.encode())
            if key_type(certificate) != "ED25519":
                digest = crypto.EVP_sha256()
            if not crypto.X509_sign(certificate, self.key, digest):
                refuse_to_make()
            return certificate_to_der(certificate)
        finally:
            crypto.X509_free(certificate)

    cdef int _fill(
        self, X509* certificate, bytes common_name, serial, not_before, not_after
    ) except -1:
        """Set everything but extensions and signature."""
        cdef X509_NAME* name = crypto.X509_get_subject_name(certificate)
        # A given type of text has no limit of length: X.520's is 64 characters.
        if not (
            crypto.X509_set_version(certificate, X509_VERSION_3)
            and crypto.ASN1_INTEGER_set_uint64(
                crypto.X509_get_serialNumber(certificate), serial
            )
            and crypto.ASN1_TIME_set(
                crypto.X509_getm_notBefore(certificate), <time_t>not_before
            ) is not NULL
            and crypto.ASN1_TIME_set(
                crypto.X509_getm_notAfter(certificate), <time_t>not_after
            ) is not NULL
            and crypto.X509_NAME_add_entry_by_NID(
                name, NID_COMMON_NAME, V_ASN1_UTF8STRING, common_name, <int>len(common_name), -1, 0
            )
            and crypto.X509_set_issuer_name(certificate, name)
            and crypto.X509_set_pubkey(certificate, self.key)
        ):
            refuse_to_make()
        return 0


cdef PrivateKey private_key(EVP_PKEY* key):
    """Return the owner of a key."""
    cdef PrivateKey owner = PrivateKey.__new__(PrivateKey)
    owner.key = key
    return owner


cdef int add_extension(X509* certificate, int nid, bytes value) except -1:
    cdef X509_EXTENSION* extension = crypto.X509V3_EXT_nconf_nid(NULL, NULL, nid, value)
    cdef bint ok
    if extension is NULL:
        refuse_to_make()
    ok = crypto.X509_add_ext(certificate, extension, -1)
    crypto.X509_EXTENSION_free(extension)
    if not ok:
        refuse_to_make()
    return 0


cdef int refuse_to_make() except -1:
    raise TlsError("certificate", f"cannot make the certificate: {first_reason()}")
