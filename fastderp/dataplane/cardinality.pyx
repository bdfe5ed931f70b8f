# HyperLogLog; see cardinality.pxd for the owner and the lock.

from libc.math cimport ldexp, log

from fastderp.dataplane.sys cimport count_leading_zeros


cdef void sketch_add(SenderSketch* sketch, uint64_t hash) noexcept nogil:
    """Count a sender by a hash of its key that the sender cannot choose."""
    cdef uint8_t rank = <uint8_t>(count_leading_zeros(hash << 8 | 0x80) + 1)
    cdef uint8_t* register = &sketch.registers[hash >> 56]
    if rank > register[0]:
        register[0] = rank


cdef double sketch_estimate(const SenderSketch* sketch) noexcept nogil:
    """Return the estimated number of senders.

    Flajolet et al. 2007, with linear counting below 2.5 times the number of registers.
    """
    cdef double inverse_sum = 0
    cdef double estimate
    cdef int n_zero = 0
    cdef int i
    for i in range(SENDER_REGISTERS):
        inverse_sum += ldexp(1.0, -<int>sketch.registers[i])
        n_zero += sketch.registers[i] == 0
    estimate = (0.7213 / (1 + 1.079 / SENDER_REGISTERS)
                * SENDER_REGISTERS * SENDER_REGISTERS / inverse_sum)
    if estimate <= 2.5 * SENDER_REGISTERS and n_zero:
        estimate = SENDER_REGISTERS * log(<double>SENDER_REGISTERS / n_zero)
    return estimate
