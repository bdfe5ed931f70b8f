# Included by routes.pyx: which of the sessions that share a key gets its packets (PROTOCOL §6.3).
# Every function runs under the table's lock.

# ---- default policy: the last writer is active (§6.3)
# The order of the members is derper's `send_history` without repeats.

cdef void member_put(HandleList* members, uint32_t at, uint64_t handle) noexcept nogil:
    # The list has room, because it held the handle before.
    memmove(&members.items[at + 1], &members.items[at], (members.n - at) * sizeof(uint64_t))
    members.items[at] = handle
    members.n += 1


cdef void writer_joined(Route* route, uint64_t handle) noexcept nogil:
    # The second member enters the history when it sends a frame; until then it ranks last. The
    # first and all later members enter at once.
    if route.members.n == 2:
        list_remove(&route.members, handle)
        member_put(&route.members, 0, handle)
        atomic_store_u64(&route.unheard, handle)
    activate(route, handle)


cdef void writer_sent(Route* route, uint64_t handle) noexcept nogil:
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


# ---- test policy: sessions that fight are disabled (§6.3); without memory some fights are missed

cdef void fighter_joined(Route* route, uint64_t handle) noexcept nogil:
    if route.members.n == 2:
        list_append(&route.history, route.members.items[0])
    elif route.members.n > 2:
        list_append(&route.history, handle)
    activate(route, handle)


cdef void fighter_sent(Route* route, uint64_t handle) noexcept nogil:
    # A member that sends again after another one fights over the key: all members are disabled.
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
    # The remaining member that sent last and is not disabled becomes active; so does a single
    # remaining member.
    cdef uint32_t i
    cdef uint64_t successor = 0
    list_remove(&route.disabled, handle)
    while list_remove(&route.history, handle):
        pass
    if route.members.n <= 1:
        route.disabled.n = route.history.n = 0
        activate(route, route.members.items[0] if route.members.n else 0)
    elif atomic_peek_u64(&route.active) == handle:
        for i in range(route.history.n):
            if not list_contains(&route.disabled, route.history.items[i]):
                successor = route.history.items[i]
        activate(route, successor)
