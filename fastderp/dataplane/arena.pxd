# Slots of one size at stable addresses, reached by index from any thread without a lock. Memory
# grows with the peak number of live items and is freed with the arena. The owner of an arena names
# the lock for alloc and free.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    ARENA_CHUNK = 1024           # items per chunk
    ARENA_CHUNKS = 4096          # up to 4 Mi items

# Guarded by the lock that the owner names; threads with an index read `chunks` without it.
cdef struct Arena:
    # every item begins with a uint32_t that the arena uses while the item is free
    size_t item_size
    uint32_t n_touched           # items ever handed out
    uint32_t n_live
    uint32_t free_head           # index + 1 of the most recently freed item; 0 = none
    uint8_t* chunks[ARENA_CHUNKS]

cdef enum:
    ARENA_FULL = 0xFFFFFFFF

cdef void arena_init(Arena* a, size_t item_size) noexcept nogil
cdef void arena_destroy(Arena* a) noexcept nogil
cdef uint32_t arena_alloc(Arena* a) noexcept nogil
cdef void* arena_place(Arena* a, uint32_t index) noexcept nogil
cdef void arena_free(Arena* a, uint32_t index) noexcept nogil


cdef inline void* arena_at(Arena* a, uint32_t index) noexcept nogil:
    return a.chunks[index // ARENA_CHUNK] + (index % ARENA_CHUNK) * a.item_size
