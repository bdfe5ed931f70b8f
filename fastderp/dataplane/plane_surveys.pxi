# Included by plane.pyx: surveys of all sessions and routes. The control plane runs them; they read
# each session under its output lock and routes under the table's lock.

cdef list session_infos(Core* core):
    """Return a SessionInfo for every connected session."""
    cdef uint32_t slot
    infos = [
        session_info(<Session*>arena_at(&core.sessions, slot))
        for slot in range(sessions_touched(core))
    ]
    return [info for info in infos if info is not None]


cdef list session_tcp_infos(Core* core):
    """Return a TcpInfo for every session on a TCP socket."""
    cdef uint32_t slot
    infos = [
        tcp_info(<Session*>arena_at(&core.sessions, slot))
        for slot in range(sessions_touched(core))
    ]
    return [info for info in infos if info is not None]


cdef object round_trips_count(Core* core, bounds_us):
    """Count the sessions by round-trip time; see Plane.round_trips."""
    cdef unsigned int bounds[16]
    cdef uint64_t counts[17]
    cdef uint64_t n_not_tcp = 0
    cdef uint64_t n_failed = 0
    cdef tcp_counts info
    cdef SessionSnapshot seen
    cdef uint32_t slot
    cdef int n_bounds = len(bounds_us)
    cdef int i
    cdef Session* s
    if n_bounds > 16:
        raise ValueError(f"round_trips takes up to 16 bounds, not {n_bounds}")
    for i in range(n_bounds):
        bounds[i] = bounds_us[i]
    memset(counts, 0, sizeof(counts))
    with nogil:
        for slot in range(sessions_touched(core)):
            s = <Session*>arena_at(&core.sessions, slot)
            if not session_snapshot(s, &seen, &info):
                continue
            if seen.has_tcp:
                i = 0
                while i < n_bounds and info.rtt_us > bounds[i]:
                    i += 1
                counts[i] += 1
            elif session_excuse(s, seen.handle):
                n_not_tcp += not seen.is_tcp
                n_failed += seen.is_tcp
    return [counts[i] for i in range(n_bounds + 1)], n_not_tcp, n_failed


cdef dict unique_senders_count(RouteTable* routes):
    """Count the senders of each receiving session; see Plane.unique_senders."""
    cdef uint32_t first = 0
    cdef uint32_t index
    cdef uint32_t i
    cdef Route* route
    senders = Counter()
    while first < routes.routes.n_touched:
        # 256 routes at a time: logins wait for this lock.
        receivers = []
        pthread_mutex_lock(&routes.lock)
        try:
            for index in range(first, min(first + 256, routes.routes.n_touched)):
                route = <Route*>arena_at(&routes.routes, index)
                if route.members.n or route.forwarders.n:
                    receivers += [
                        route.gone_watchers.slots[i]
                        for i in range(route.gone_watchers.capacity)
                        if route.gone_watchers.slots[i]
                    ]
        finally:
            pthread_mutex_unlock(&routes.lock)
        senders.update(receivers)
        first += 256
    return dict(senders)


cdef dict routes_dict(RouteTable* routes):
    """Return the counters of the routing table by PROTOCOL §14 names without `derp_`."""
    pthread_mutex_lock(&routes.lock)
    table = {
        "clients_total": routes.buckets.n_live,
        "clients_local": routes.n_local_keys,
        "clients_remote": routes.buckets.n_live - routes.n_local_keys,
        "current_dup_client_keys": routes.n_duplicate_keys,
        "current_dup_client_conns": routes.n_duplicate_members,
        "multiforwarder_created": routes.n_multiforwarders_created,
        "multiforwarder_deleted": routes.n_multiforwarders_deleted,
        "packet_forwarder_delete_other_value": routes.n_other_forwarder_deletes,
    }
    pthread_mutex_unlock(&routes.lock)
    return table


cdef list handles_list(RouteTable* routes, const uint8_t* key, uint32_t n_most):
    """Return the handles of the sessions that share a key, up to n_most; 0 = all."""
    cdef uint64_t few[8]
    cdef uint64_t* many
    cdef uint32_t n = routes_members(routes, key, few, 8)
    if n_most:
        n = min(n, n_most)
    if n <= 8:
        return [few[i] for i in range(n)]
    many = <uint64_t*>calloc(n, sizeof(uint64_t))
    if many is NULL:
        raise MemoryError
    try:
        n = min(n, routes_members(routes, key, many, n))
        return [many[i] for i in range(n)]
    finally:
        free(many)


cdef dict core_dict(Core* core):
    """Return the counters that are one value for all threads."""
    return {
        "average_queue_duration_ms": atomic_peek_u64(&core.queue_ns) / 1e6,
        "backlog_bytes": atomic_peek_u64(&core.budget.bytes),
        "events_lost": atomic_peek_u64(&core.events.lost),
        "gone_watchers_bytes": atomic_peek_u64(&core.routes.gone_watchers_bytes),
        "stash_bytes": (atomic_peek_u64(&core.stashes.partial_bytes)
                        + atomic_peek_u64(&core.stashes.postponed_bytes)),
        "workers": core.n_workers,
    }
