# Included by plane.pyx: the rate limits of the clients (PROTOCOL §6.8). The control plane runs it.

cdef rate_limits_set(Core* core, limits):
    cdef RateLimit table[RATE_CLASSES]
    cdef uint64_t bytes_per_s
    cdef uint64_t burst_bytes
    cdef int i = 0
    if len(limits) > RATE_CLASSES:
        raise ValueError(f"at most {RATE_CLASSES} rate limits, not {len(limits)}")
    memset(table, 0, sizeof(table))
    for bytes_per_s, burst_bytes in limits:
        if bytes_per_s:
            burst_bytes = max(burst_bytes, <uint64_t>(KEY_SIZE + PACKET_MAX))
            table[i].bytes_per_s = <double>bytes_per_s
            table[i].burst_bytes = <double>burst_bytes
        i += 1
    pthread_mutex_lock(&core.limit_lock)
    memcpy(core.limits, table, sizeof(table))
    atomic_store_u64(&core.limit_version, core.limit_version + 1)
    pthread_mutex_unlock(&core.limit_lock)


cdef void rate_limits_recheck(Core* core):
    # Wake the clients that are held back, because their limit may have ended.
    cdef uint32_t slot
    cdef Session* s
    for slot in range(sessions_touched(core)):
        s = <Session*>arena_at(&core.sessions, slot)
        pthread_mutex_lock(&s.output_lock)
        if s.state == SESSION_OPEN and s.is_held:
            wheel_arm(&core.wheels[s.worker], &s.timer, clock_ns())
        pthread_mutex_unlock(&s.output_lock)


cdef void session_set_rate_class(Session* s, uint64_t handle, uint8_t rate_class):
    pthread_mutex_lock(&s.output_lock)
    if atomic_load_u64(&s.handle) == handle:
        atomic_store_u8(&s.rate_class, rate_class)
    pthread_mutex_unlock(&s.output_lock)
