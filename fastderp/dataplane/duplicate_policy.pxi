# Included by routes.pyx: which of the sessions that share a key is sent its packets (PROTOCOL
# §6.3).

# ---- the last writer is active (§6.3); the order of the members is derper's `send_history` without
# repeats

cdef void member_put(HandleList* members, uint32_t at, uint64_t handle) noexcept nogil:
    # In a list that has had room for it.
    memmove(&members.items[at + 1], &members.items[at], (members.n - at) * sizeof(uint64_t))
    members.items[at] = handle
    members.n += 1


cdef void writer_joined(Route* route, uint64_t handle) noexcept nogil:
    # The second one enters the history when it speaks, and until then follows after all who are in
    # it. The first and those that come later are in it at once.
    if route.members.n == 2:
        list_remove(&route.members, handle)
        member_put(&route.members, 0, handle)
        atomic_store_u64(&route.unheard, handle)
    activate(route, handle)


cdef void writer_spoke(Route* route, uint64_t handle) noexcept nogil:
    if not list_remove(&route.members, handle):
        return
    member_put(&route.members, route.members.n, handle)
    if atomic_peek_u64(&route.unheard) == handle:
        atomic_store_u64(&route.unheard, 0)
    activate(route, handle)


cdef void writer_left(Route* route, uint64_t handle) noexcept nogil:
    if route.members.n <= 1 or atomic_peek_u64(&route.unheard) == handle:
        atomic_store_u64(&route.unheard, 0)
    if atomic_peek_u64(&route.active) == handle:
        activate(route, route.members.items[route.members.n - 1] if route.members.n else 0)


# ---- sessions that fight are disabled (§6.3), for tests; without memory some fights are missed


cdef void fighter_joined(Route* route, uint64_t handle) noexcept nogil:
    if route.members.n == 2:
        list_append(&route.history, route.members.items[0])
    elif route.members.n > 2:
        list_append(&route.history, handle)
    activate(route, handle)


cdef void fighter_spoke(Route* route, uint64_t handle) noexcept nogil:
    # Who speaks again after another one has spoken is fighting: then nobody is sent anything.
    cdef uint32_t i
    cdef HandleList* history = &route.history
    if route.members.n < 2 or list_contains(&route.disabled, handle):
        return
    if history.n and history.items[history.n - 1] == handle:
        return
    if list_contains(history, handle):
        route.disabled.n = 0
        for i in range(route.members.n):
            list_append(&route.disabled, route.members.items[i])
        activate(route, 0)
        return
    list_append(history, handle)
    activate(route, handle)


cdef void fighter_left(Route* route, uint64_t handle) noexcept nogil:
    # The latest speaker that is still here and not disabled takes over; the last one left is simply
    # active.
    cdef uint32_t i
    cdef uint64_t heir = 0
    list_remove(&route.disabled, handle)
    while list_remove(&route.history, handle):
        pass
    if route.members.n <= 1:
        route.disabled.n = route.history.n = 0
        activate(route, route.members.items[0] if route.members.n else 0)
    elif atomic_peek_u64(&route.active) == handle:
        for i in range(route.history.n):
            if not list_contains(&route.disabled, route.history.items[i]):
                heir = route.history.items[i]
        activate(route, heir)
