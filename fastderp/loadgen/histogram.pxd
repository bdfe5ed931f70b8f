# A latency histogram with log-linear buckets, as in HDR histograms: constant memory and cost. The
# engine's thread owns it during a run; other threads read it between runs.

from libc.stdint cimport uint64_t

# 128 equal steps per power of two keep a value to within 0.8 %.
cdef enum:
    HISTOGRAM_STEPS = 128
    HISTOGRAM_STEPS_LOG2 = 7
    HISTOGRAM_BUCKETS = 4096        # up to 2**38 ns (4.6 minutes); longer times count as that

cdef struct Histogram:              # owned by the engine's thread during a run
    uint64_t n
    uint64_t maximum
    uint64_t counts[HISTOGRAM_BUCKETS]

cdef void histogram_clear(Histogram* h) noexcept nogil
cdef void histogram_record(Histogram* h, uint64_t value) noexcept nogil
cdef uint64_t histogram_percentile(const Histogram* h, double percent) noexcept nogil
