"""The receivers of a key, and the notices that it has left."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.peer_gone cimport (
    PeerGoneQueue, peer_gone_add, peer_gone_destroy, peer_gone_first, peer_gone_init, peer_gone_pop)
from fastderp.dataplane.routes cimport (
    GONE_WATCHERS_CAP_BYTES, HandleSet, Route, RouteTable, routes_add_gone_watcher, routes_destroy,
    routes_init, routes_register, routes_unregister)


cdef bint always_alive(void* context, uint64_t handle) noexcept nogil:
    return True


cdef class LeavingKey:
    """A key that joins, sends to receivers, and leaves, time after time."""

    cdef RouteTable* table
    cdef PeerGoneQueue* queue

    def __cinit__(self):
        self.table = <RouteTable*>calloc(1, sizeof(RouteTable))
        self.queue = <PeerGoneQueue*>calloc(1, sizeof(PeerGoneQueue))
        if self.table is NULL or self.queue is NULL or not routes_init(
                self.table, 1, False, GONE_WATCHERS_CAP_BYTES, always_alive, NULL):
            raise MemoryError()
        peer_gone_init(self.queue, -1)

    def turn(self, const uint8_t[::1] key not None, uint64_t n_receivers):
        """Note each receiver twice, let the key leave; return how many are to be told."""
        cdef HandleSet watchers
        cdef Route* route
        cdef uint64_t i, n_told = 0
        cdef uint32_t n_members
        watchers.slots = NULL
        watchers.n = watchers.capacity = 0
        with nogil:
            route = routes_register(self.table, &key[0], 1, &n_members)
            for i in range(2 * n_receivers):
                routes_add_gone_watcher(self.table, route, 2 + i % n_receivers)
            routes_unregister(self.table, route, 1, &watchers)
            peer_gone_add(self.queue, self.table, &key[0], &watchers)
            while peer_gone_first(self.queue) is not NULL:
                n_told += peer_gone_first(self.queue).watchers.n
                peer_gone_pop(self.queue, self.table)
        return n_told

    def __dealloc__(self):
        if self.queue is not NULL and self.table is not NULL:
            peer_gone_destroy(self.queue, self.table)
            routes_destroy(self.table)
        free(self.queue)
        free(self.table)
