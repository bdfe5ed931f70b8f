"""The routing table as a Python class. Routes are named by the addresses of their C structs."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.routes cimport (
    GONE_WATCHERS_CAP_BYTES, HandleSet, Route, RouteTable, handle_set_free, routes_add_forwarder,
    routes_add_gone_watcher, routes_destroy, routes_find, routes_init, routes_members,
    routes_note_sender, routes_reader_enter, routes_reader_leave, routes_register,
    routes_remove_forwarder, routes_unregister,
)

cdef enum:
    N_MEMBERS = 16


cdef bint is_alive(void* alive, uint64_t handle) noexcept nogil:
    with gil:
        return handle in <set>alive


cdef class Routing:
    """A table with two readers. Its sets of handles keep the handles in `alive`."""

    cdef RouteTable* table
    cdef readonly set alive

    def __cinit__(self, bint disable_fighters=False, uint64_t cap_bytes=GONE_WATCHERS_CAP_BYTES):
        self.alive = set()
        self.table = <RouteTable*>calloc(1, sizeof(RouteTable))
        if self.table is NULL or not routes_init(
                self.table, 2, disable_fighters, cap_bytes, is_alive, <void*>self.alive):
            raise MemoryError

    cdef Route* route(self, bytes key) except NULL:
        cdef const uint8_t* k = key
        routes_reader_enter(self.table, 0)
        cdef Route* route = routes_find(self.table, k)
        routes_reader_leave(self.table, 0)
        if route is NULL:
            raise KeyError(key)
        return route

    cdef object watchers(self, bint gone, HandleSet* found):
        handles = {found.slots[i] for i in range(found.capacity) if found.slots[i]}
        handle_set_free(self.table, found)
        return handles if gone else None

    def register(self, bytes key not None, uint64_t handle):
        """Return how many sessions have the key now."""
        cdef uint32_t n_members = 0
        if routes_register(self.table, key, handle, &n_members) is NULL:
            raise MemoryError
        return n_members

    def unregister(self, bytes key not None, uint64_t handle):
        """Return the handles to notify when that was the last of the key, else None."""
        cdef HandleSet found = HandleSet(NULL, 0, 0, 0)
        cdef bint gone = routes_unregister(self.table, self.route(key), handle, &found)
        return self.watchers(gone, &found)

    def add_forwarder(self, bytes key not None, uint64_t link):
        return bool(routes_add_forwarder(self.table, key, link))

    def remove_forwarder(self, bytes key not None, uint64_t link):
        cdef HandleSet found = HandleSet(NULL, 0, 0, 0)
        cdef bint gone = routes_remove_forwarder(self.table, key, link, &found)
        return self.watchers(gone, &found)

    def add_gone_watcher(self, bytes key not None, uint64_t handle):
        return bool(routes_add_gone_watcher(self.table, self.route(key), handle))

    def speak(self, bytes key not None, uint64_t handle):
        routes_note_sender(self.table, self.route(key), handle)

    def enter(self, uint32_t reader):
        routes_reader_enter(self.table, reader)

    def leave(self, uint32_t reader):
        routes_reader_leave(self.table, reader)

    def find(self, bytes key not None):
        """Return (address, active handle, forwarder), or None. Between enter and leave."""
        cdef const uint8_t* k = key
        cdef Route* route = routes_find(self.table, k)
        return None if route is NULL else (<size_t>route, route.active, route.forwarder)

    def members(self, bytes key not None):
        cdef uint64_t handles[N_MEMBERS]
        cdef uint32_t n = routes_members(self.table, key, handles, N_MEMBERS)
        return [handles[i] for i in range(min(n, <uint32_t>N_MEMBERS))]

    @property
    def gone_watchers_bytes(self):
        return self.table.gone_watchers_bytes

    @property
    def counts(self):
        """(keys, local keys, keys with several sessions)."""
        return self.table.buckets.n_live, self.table.n_local_keys, self.table.n_duplicate_keys

    @property
    def n_waiting(self):
        """Removed routes that a reader may still hold."""
        return self.table.n_limbo

    def __dealloc__(self):
        if self.table is not NULL:
            routes_destroy(self.table)
        free(self.table)
