"""The estimate of how many senders a session has."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastderp.dataplane.cardinality cimport SenderSketch, sketch_add, sketch_estimate


def count(const uint64_t[::1] hashes):
    """Return the estimated number of distinct hashes."""
    cdef SenderSketch sketch
    cdef Py_ssize_t i
    cdef double estimate
    memset(&sketch, 0, sizeof(sketch))
    with nogil:
        for i in range(hashes.shape[0]):
            sketch_add(&sketch, hashes[i])
        estimate = sketch_estimate(&sketch)
    return estimate
