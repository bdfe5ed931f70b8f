# An estimate of how many distinct senders a session has heard: a HyperLogLog of 256 registers, 6.5
# % standard error. Guarded by the output lock of the session that owns it.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    SENDER_REGISTERS = 256

cdef struct SenderSketch:
    uint8_t registers[SENDER_REGISTERS]

cdef void sketch_add(SenderSketch* sketch, uint64_t hash) noexcept nogil
cdef double sketch_estimate(const SenderSketch* sketch) noexcept nogil
