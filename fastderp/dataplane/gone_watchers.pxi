# Included by routes.pyx: the sessions that get a PeerGone when a key leaves the region (PROTOCOL
# §6.7). The table's lock guards every set inside the table.

# ---- sets of handles

cdef void handle_set_free(RouteTable* t, HandleSet* s) noexcept nogil:
    """Free a set. The caller owns it or holds the table's lock."""
    atomic_sub_u64(&t.gone_watchers_bytes, s.capacity * sizeof(uint64_t))
    free(s.slots)
    memset(s, 0, sizeof(HandleSet))


cdef void handle_set_put(HandleSet* s, uint64_t handle) noexcept nogil:
    cdef uint32_t i = <uint32_t>((handle * 0x9E3779B97F4A7C15u) >> 32) & (s.capacity - 1)
    while s.slots[i] != 0:
        if s.slots[i] == handle:
            return
        i = (i + 1) & (s.capacity - 1)
    s.slots[i] = handle
    s.n += 1


cdef uint32_t handle_set_living(const RouteTable* t, const HandleSet* s) noexcept nogil:
    cdef uint32_t n = 0
    cdef uint32_t i
    for i in range(s.capacity):
        n += s.slots[i] != 0 and t.alive(t.alive_context, s.slots[i])
    return n


cdef inline bint gone_watchers_have_room(const RouteTable* t, const HandleSet* s,
                                         uint32_t capacity) noexcept nogil:
    return capacity <= s.capacity or (
        atomic_peek_u64(&t.gone_watchers_bytes) + (capacity - s.capacity) * sizeof(uint64_t)
        <= t.gone_watchers_cap_bytes)


cdef bint handle_set_grow(RouteTable* t, HandleSet* s) noexcept nogil:
    # Growing drops receivers that have left, so the number of connected sessions bounds the set.
    cdef HandleSet fresh
    cdef uint32_t n_living
    cdef uint32_t i
    if s.n_pause:
        s.n_pause -= 1
        return False
    n_living = handle_set_living(t, s)
    memset(&fresh, 0, sizeof(fresh))
    fresh.capacity = 4
    while fresh.capacity < 2 * (n_living + 1):
        fresh.capacity *= 2
    if not gone_watchers_have_room(t, s, fresh.capacity):
        # Scanning a large set for every rejected receiver would be slow.
        s.n_pause = s.capacity // 4
        return False
    fresh.slots = <uint64_t*>calloc(fresh.capacity, sizeof(uint64_t))
    if fresh.slots is NULL:
        return False
    for i in range(s.capacity):
        # Some may have left since they were counted; handles never become valid again.
        if s.slots[i] != 0 and t.alive(t.alive_context, s.slots[i]):
            handle_set_put(&fresh, s.slots[i])
    atomic_add_u64(&t.gone_watchers_bytes, fresh.capacity * sizeof(uint64_t))
    handle_set_free(t, s)
    s[0] = fresh
    return True


cdef void gone_watcher_add_locked(RouteTable* t, Route* route, uint64_t receiver) noexcept nogil:
    if (4 * (route.gone_watchers.n + 1) <= 3 * route.gone_watchers.capacity
            or handle_set_grow(t, &route.gone_watchers)):
        handle_set_put(&route.gone_watchers, receiver)


cdef bint routes_add_gone_watcher(RouteTable* t, Route* route, uint64_t receiver) noexcept nogil:
    """Record that receiver got data from route's key. False when the key has left the region.

    Without memory, or above gone_watchers_cap_bytes, the receiver gets no PeerGone later.
    """
    cdef bint is_here
    pthread_mutex_lock(&t.lock)
    is_here = route.members.n != 0 or route.forwarders.n != 0
    if is_here:
        gone_watcher_add_locked(t, route, receiver)
    pthread_mutex_unlock(&t.lock)
    return is_here


# ---- keys that sent packets before they had a route (§6.7)

cdef uint64_t routes_unrouted_stamp(const RouteTable* t, const uint8_t* key) noexcept nogil:
    """Return a stamp for a key without a route, valid until the next key joins the region."""
    return routes_hash(t, key) + atomic_peek_u64(&t.next_stamp)


cdef void routes_note_unrouted(RouteTable* t, const uint8_t* key, uint64_t receiver) noexcept nogil:
    """Record that receiver got data from a key without a route, in case the key gets one.

    A bucket keeps its UNROUTED_PLACES latest pairs.
    """
    cdef Route* route
    cdef UnroutedBucket* bucket
    cdef int i
    pthread_mutex_lock(&t.lock)
    route = routes_find(t, key)
    if t.unrouted is NULL:
        t.unrouted = <UnroutedBucket*>calloc(UNROUTED_BUCKETS, sizeof(UnroutedBucket))
    if route is not NULL:
        gone_watcher_add_locked(t, route, receiver)
    elif t.unrouted is not NULL:
        bucket = &t.unrouted[routes_hash(t, key) % UNROUTED_BUCKETS]
        for i in range(UNROUTED_PLACES):
            if bucket.places[i].receiver == receiver and memcmp(bucket.places[i].key, key, 32) == 0:
                break
        else:
            bucket.places[bucket.next].receiver = receiver
            memcpy(bucket.places[bucket.next].key, key, 32)
            bucket.next = (bucket.next + 1) % UNROUTED_PLACES
    pthread_mutex_unlock(&t.lock)


cdef void unrouted_join(RouteTable* t, Route* route) noexcept nogil:
    # The receivers of a key that now has a route become its gone watchers.
    cdef UnroutedBucket* bucket
    cdef int i
    if t.unrouted is NULL:
        return
    bucket = &t.unrouted[route.hash % UNROUTED_BUCKETS]
    for i in range(UNROUTED_PLACES):
        if bucket.places[i].receiver != 0 and memcmp(bucket.places[i].key, route.key, 32) == 0:
            gone_watcher_add_locked(t, route, bucket.places[i].receiver)
            bucket.places[i].receiver = 0
