# An estimate of how many distinct senders have sent to a session: a HyperLogLog of 256 registers
# with a standard error of 6.5 %. The output lock of the session that owns it guards it.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    SENDER_REGISTERS = 256

cdef struct SenderSketch:        # guarded by the session's output lock
    uint8_t registers[SENDER_REGISTERS]

cdef void sketch_add(SenderSketch* sketch, uint64_t hash) noexcept nogil
cdef double sketch_estimate(const SenderSketch* sketch) noexcept nogil
