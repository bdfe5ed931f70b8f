"""Latency histogram with log-linear buckets; see histogram.pxd for the owner and the thread."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    int __builtin_clzll(unsigned long long value) nogil


cdef void histogram_clear(Histogram* h) noexcept nogil:
    memset(h, 0, sizeof(Histogram))


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    # Values below 128 have a bucket each; for larger ones the top 8 bits select it.
    cdef uint32_t shift, bucket
    if value < HISTOGRAM_STEPS:
        return <uint32_t>value
    shift = 63 - HISTOGRAM_STEPS_LOG2 - __builtin_clzll(value)
    bucket = (shift << HISTOGRAM_STEPS_LOG2) + <uint32_t>(value >> shift)
    return bucket if bucket < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1


cdef inline uint64_t bucket_top(uint32_t bucket) noexcept nogil:
    """Return the largest value of the bucket."""
    cdef uint32_t shift
    if bucket < 2 * HISTOGRAM_STEPS:
        return bucket
    shift = (bucket >> HISTOGRAM_STEPS_LOG2) - 1
    return ((<uint64_t>(bucket - (shift << HISTOGRAM_STEPS_LOG2)) + 1) << shift) - 1


cdef void histogram_record(Histogram* h, uint64_t value) noexcept nogil:
    h.n += 1
    if value > h.maximum:
        h.maximum = value
    h.counts[bucket_of(value)] += 1


cdef uint64_t histogram_percentile(const Histogram* h, double percent) noexcept nogil:
    """Return the smallest bucket bound that `percent` of the values do not exceed; 0 when empty."""
    cdef double wanted = percent / 100.0 * h.n
    cdef uint64_t seen = 0
    cdef uint32_t bucket
    if h.n == 0:
        return 0
    for bucket in range(<uint32_t>HISTOGRAM_BUCKETS):
        seen += h.counts[bucket]
        if seen > 0 and seen >= wanted:
            return min(bucket_top(bucket), h.maximum)
    return h.maximum


cdef class LatencyHistogram:
    """The engine's histogram, for Python code that needs the same percentiles."""

    cdef Histogram inner

    def __cinit__(self):
        histogram_clear(&self.inner)

    def record(self, uint64_t value):
        """Count one value, in any unit (the engine uses nanoseconds)."""
        histogram_record(&self.inner, value)

    def percentile(self, double percent):
        """Return the value that `percent` (0 to 100) of all values do not exceed, within 0.8 %."""
        return histogram_percentile(&self.inner, percent)

    @property
    def n(self):
        """The number of recorded values."""
        return self.inner.n

    @property
    def maximum(self):
        """The largest value, exact."""
        return self.inner.maximum
