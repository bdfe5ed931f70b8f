"""STUN without its sockets: the responder's C functions, which it keeps to itself, as source."""

include "fastderp/server/stun/responder.pyx"


def answer_all(const uint8_t[:, ::1] datagrams):
    """Judge and answer the datagrams, one per row, of a client at 127.0.0.1:40000."""
    cdef uint32_t[256] table
    cdef uint8_t[ANSWER_MAX] out
    cdef uint8_t[4] address = [127, 0, 0, 1]
    cdef uint8_t[2] port = [0x9C, 0x40]
    cdef size_t n_bytes = 0, n = <size_t>datagrams.shape[1]
    cdef Py_ssize_t i
    crc_table_fill(table)
    with nogil:
        for i in range(datagrams.shape[0]):
            if is_request(table, &datagrams[i, 0], n):
                n_bytes += answer_write(
                    out, &datagrams[i, 8], address, sizeof(address), port)
    return n_bytes
