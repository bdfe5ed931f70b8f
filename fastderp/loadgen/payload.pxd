# The payload of a load's packets: a checked head and a body that can be compared. Pure functions on
# the caller's memory; any thread may call them.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MARK_SIZE = 32              # the smallest payload that is identifiable on arrival
    PAYLOAD_MAX = 65536         # PROTOCOL §2
    PATTERN_STEPS = 512         # number of offsets, 8 bytes apart, where bodies start
    PATTERN_SIZE = PAYLOAD_MAX + PATTERN_STEPS * 8

# The head of every payload, in host order: only this process reads it back. Owned by the caller.
cdef struct Mark:
    uint64_t check              # of the other fields and the run's seed
    uint64_t sequence           # per flow, from 0
    uint64_t sent_ns            # CLOCK_MONOTONIC; the due time when packets follow a schedule
    uint32_t flow
    uint32_t size               # of the whole payload, this head included

cdef void payload_write(uint8_t* payload, Mark* mark, uint64_t seed,
                        const uint8_t* pattern) noexcept nogil
cdef bint payload_read(const uint8_t* payload, size_t size, Mark* mark,
                       uint64_t seed) noexcept nogil
cdef bint payload_body_is(const uint8_t* payload, const Mark* mark,
                          const uint8_t* pattern) noexcept nogil
