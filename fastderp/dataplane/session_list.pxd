# Lists of a worker's sessions, linked through the sessions: at most one list of each kind for a
# session. `kind` is a ListKind. Worker only; zeroed memory is an empty list.

from fastderp.dataplane.core cimport Session, SessionList


cdef inline void list_append(SessionList* list, int kind, Session* s) noexcept nogil:
    s.neighbors[kind].next = NULL
    s.neighbors[kind].previous = list.last
    if list.last is not NULL:
        list.last.neighbors[kind].next = s
    else:
        list.first = s
    list.last = s


cdef inline void list_remove(SessionList* list, int kind, Session* s) noexcept nogil:
    cdef Session* previous = s.neighbors[kind].previous
    cdef Session* following = s.neighbors[kind].next
    if previous is not NULL:
        previous.neighbors[kind].next = following
    else:
        list.first = following
    if following is not NULL:
        following.neighbors[kind].previous = previous
    else:
        list.last = previous
