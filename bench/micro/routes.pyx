"""The routing table: lookups, registrations, removals."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.routes cimport (
    GONE_WATCHERS_CAP_BYTES, HandleSet, Route, RouteTable, handle_set_free, routes_destroy,
    routes_find, routes_init, routes_reader_enter, routes_reader_leave, routes_register,
    routes_unregister)

cdef enum:
    KEY = 32


cdef bint always_alive(void* context, uint64_t handle) noexcept nogil:
    return True


cdef class Table:
    """A table with the keys of `keys`, 32 bytes each, registered one after another."""

    cdef RouteTable* table
    cdef Route** routes
    cdef bytes keys
    cdef uint32_t n

    def __cinit__(self, bytes keys not None):
        self.keys = keys
        self.n = <uint32_t>(len(keys) // KEY)
        self.table = <RouteTable*>calloc(1, sizeof(RouteTable))
        self.routes = <Route**>calloc(self.n, sizeof(Route*))
        if self.table is NULL or self.routes is NULL or not routes_init(
                self.table, 1, False, GONE_WATCHERS_CAP_BYTES, always_alive, NULL):
            raise MemoryError()
        self.register()

    cdef register(self):
        cdef const uint8_t* key = self.keys
        cdef uint32_t i, n_members
        with nogil:
            for i in range(self.n):
                self.routes[i] = routes_register(self.table, key + KEY * i, i + 1, &n_members)

    cdef unregister(self):
        cdef HandleSet watchers
        cdef uint32_t i
        with nogil:
            for i in range(self.n):
                watchers.slots = NULL
                watchers.n = watchers.capacity = 0
                routes_unregister(self.table, self.routes[i], i + 1, &watchers)
                handle_set_free(self.table, &watchers)

    def find(self, bytes keys not None):
        """Return the number of registered keys, looked up in one read section."""
        cdef const uint8_t* key = keys
        cdef size_t i, found = 0, n = <size_t>len(keys) // KEY
        with nogil:
            routes_reader_enter(self.table, 0)
            for i in range(n):
                found += routes_find(self.table, key + KEY * i) is not NULL
            routes_reader_leave(self.table, 0)
        return found

    def leave_and_return(self):
        """Unregister each key and register it again."""
        self.unregister()
        self.register()

    def __dealloc__(self):
        if self.table is not NULL and self.routes is not NULL:
            self.unregister()
            routes_destroy(self.table)
        free(self.routes)
        free(self.table)
