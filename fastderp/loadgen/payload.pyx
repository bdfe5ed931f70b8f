"""The payload of a load's packets; see payload.pxd for the layout and the thread."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef inline uint64_t mark_check(const Mark* mark, uint64_t seed) noexcept nogil:
    # The checksum covers all fields, so that a damaged head or one of another run is detected.
    cdef uint64_t h = seed
    h = (h ^ mark.sequence) * <uint64_t>0x9E3779B97F4A7C15
    h ^= h >> 32
    h = (h ^ mark.sent_ns) * <uint64_t>0xC2B2AE3D27D4EB4F
    h ^= h >> 29
    h = (h ^ (<uint64_t>mark.flow << 32 | mark.size)) * <uint64_t>0x165667B19E3779F9
    return h ^ (h >> 32)


cdef inline const uint8_t* body_of(const Mark* mark, const uint8_t* pattern) noexcept nogil:
    return pattern + (mark.sequence % PATTERN_STEPS) * 8


cdef void payload_write(uint8_t* payload, Mark* mark, uint64_t seed,
                        const uint8_t* pattern) noexcept nogil:
    """Set mark.check and write `mark.size` bytes, at least MARK_SIZE: the head and its body."""
    mark.check = mark_check(mark, seed)
    memcpy(payload, mark, sizeof(Mark))
    memcpy(payload + MARK_SIZE, body_of(mark, pattern), mark.size - MARK_SIZE)


cdef bint payload_read(const uint8_t* payload, size_t size, Mark* mark,
                       uint64_t seed) noexcept nogil:
    """Copy the head of an arrived payload to mark; False when it is damaged or of another run."""
    if size < MARK_SIZE:
        return False
    memcpy(mark, payload, sizeof(Mark))
    return mark.size == size and mark.check == mark_check(mark, seed)


cdef bint payload_body_is(const uint8_t* payload, const Mark* mark,
                          const uint8_t* pattern) noexcept nogil:
    """Return whether the body equals what was sent, byte for byte."""
    return memcmp(payload + MARK_SIZE, body_of(mark, pattern), mark.size - MARK_SIZE) == 0
