# Allocation of slots by index; see arena.pxd for the owner and the lock.

from fastderp.dataplane.sys cimport pages_map, pages_unmap


cdef void arena_init(Arena* a, size_t item_size) noexcept nogil:
    """Prepare a zeroed arena."""
    # Whole cache lines: neighboring items belong to different threads.
    a.item_size = (item_size + 63) & ~<size_t>63


cdef void arena_destroy(Arena* a) noexcept nogil:
    cdef int i
    for i in range(ARENA_CHUNKS):
        if a.chunks[i] is not NULL:
            pages_unmap(a.chunks[i], a.item_size * ARENA_CHUNK)
            a.chunks[i] = NULL


cdef void* arena_place(Arena* a, uint32_t index) noexcept nogil:
    """Return the item with this index, zeroed on first use, or NULL when memory is out.

    Serves arenas that share the indexes of another arena; arena_alloc and arena_free do not.
    """
    cdef void* chunk
    if index >= <uint32_t>ARENA_CHUNK * ARENA_CHUNKS:
        return NULL
    if a.chunks[index // ARENA_CHUNK] is NULL:
        chunk = pages_map(a.item_size * ARENA_CHUNK)
        if chunk is NULL:
            return NULL
        a.chunks[index // ARENA_CHUNK] = <uint8_t*>chunk
    return arena_at(a, index)


cdef uint32_t arena_alloc(Arena* a) noexcept nogil:
    """Return the index of a free item, zeroed on first use, or ARENA_FULL."""
    cdef uint32_t index
    if a.free_head != 0:
        index = a.free_head - 1
        a.free_head = (<uint32_t*>arena_at(a, index))[0]
        a.n_live += 1
        return index
    index = a.n_touched
    if arena_place(a, index) is NULL:
        return ARENA_FULL
    a.n_touched += 1
    a.n_live += 1
    return index


cdef void arena_free(Arena* a, uint32_t index) noexcept nogil:
    (<uint32_t*>arena_at(a, index))[0] = a.free_head
    a.free_head = index + 1
    a.n_live -= 1
