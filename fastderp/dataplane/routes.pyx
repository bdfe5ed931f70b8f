# Readers, reclaiming and writers of the routing table; see routes.pxd for threads and locks.

from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from fastderp.dataplane.arena cimport (
    ARENA_FULL, arena_alloc, arena_at, arena_destroy, arena_free, arena_init,
)
from fastderp.dataplane.sys cimport (
    atomic_add_u64, atomic_fence, atomic_load_ptr, atomic_load_u64, atomic_peek_u64,
    atomic_store_ptr, atomic_store_u64, atomic_store_u8, atomic_sub_u64, getrandom,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

cdef enum:
    FIRST_BUCKETS = 1024
    # Stands in place of an index. Buckets store index + 1, so 0 is an empty bucket.
    DELETED = 0xFFFFFFFF

cdef uint64_t READER_AWAY = 0xFFFFFFFFFFFFFFFF


# ---- hashing: SipHash-1-3 of the key with the table's secret, because clients choose their keys

cdef inline uint64_t rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotl(v[1], 13) ^ v[0]
    v[0] = rotl(v[0], 32)
    v[2] += v[3]
    v[3] = rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotl(v[1], 17) ^ v[2]
    v[2] = rotl(v[2], 32)


cdef uint64_t routes_hash(const RouteTable* t, const uint8_t* key) noexcept nogil:
    """Return the key's hash, which a client cannot predict."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef int i
    v[0] = t.secret[0] ^ 0x736F6D6570736575u
    v[1] = t.secret[1] ^ 0x646F72616E646F6Du
    v[2] = t.secret[0] ^ 0x6C7967656E657261u
    v[3] = t.secret[1] ^ 0x7465646279746573u
    for i in range(4):
        memcpy(&word, key + 8 * i, 8)
        v[3] ^= word
        sip_round(v)
        v[0] ^= word
    word = <uint64_t>32 << 56
    v[3] ^= word
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint64_t bucket_word(uint64_t hash, uint32_t index) noexcept nogil:
    return (hash & 0xFFFFFFFF00000000u) | (<uint64_t>index + 1)


cdef inline Route* route_at(RouteTable* t, uint32_t index) noexcept nogil:
    return <Route*>arena_at(&t.routes, index)


# ---- life of the table

cdef Buckets* buckets_new(uint64_t size) noexcept nogil:
    cdef Buckets* b = <Buckets*>calloc(1, sizeof(Buckets) + (size - 1) * sizeof(uint64_t))
    if b is not NULL:
        b.mask = size - 1
    return b


cdef bint routes_init(RouteTable* t, uint32_t n_readers, bint disable_fighters,
                      uint64_t gone_watchers_cap_bytes,
                      handle_alive_fn alive, void* alive_context) noexcept nogil:
    """Prepare a zeroed table. False when memory is out."""
    cdef uint32_t i
    t.buckets = buckets_new(FIRST_BUCKETS)
    if t.buckets is NULL:
        return False
    pthread_mutex_init(&t.lock, NULL)
    getrandom(t.secret, sizeof(t.secret), 0)
    arena_init(&t.routes, sizeof(Route))
    t.disable_fighters = disable_fighters
    t.gone_watchers_cap_bytes = gone_watchers_cap_bytes
    t.alive = alive
    t.alive_context = alive_context
    t.next_stamp = 1
    t.epoch = 1
    t.n_readers = n_readers
    for i in range(n_readers):
        t.readers[i].epoch = READER_AWAY
    return True


cdef void routes_destroy(RouteTable* t) noexcept nogil:
    """Free everything. No reader is inside, no session registered; forwarders may remain."""
    cdef Buckets* b
    cdef uint32_t i
    for i in range(t.routes.n_touched):
        route_empty(t, route_at(t, i))
    while t.retired is not NULL:
        b = t.retired
        t.retired = b.next_retired
        free(b)
    free(t.buckets)
    free(t.limbo)
    free(t.limbo_epoch)
    free(t.unrouted)
    arena_destroy(&t.routes)
    pthread_mutex_destroy(&t.lock)


# ---- readers

cdef void routes_reader_enter(RouteTable* t, uint32_t reader) noexcept nogil:
    atomic_store_u64(&t.readers[reader].epoch, atomic_load_u64(&t.epoch))
    atomic_fence()               # the epoch becomes visible before this reader reads the table


cdef void routes_reader_leave(RouteTable* t, uint32_t reader) noexcept nogil:
    atomic_store_u64(&t.readers[reader].epoch, READER_AWAY)


cdef Route* routes_find(RouteTable* t, const uint8_t* key) noexcept nogil:
    """Return the key's route, or NULL. The pointer is valid until the reader leaves."""
    cdef Buckets* b = <Buckets*>atomic_load_ptr(<void**>&t.buckets)
    cdef uint64_t hash = routes_hash(t, key)
    cdef uint64_t i = hash & b.mask
    cdef uint64_t word
    cdef Route* route
    while True:
        word = atomic_load_u64(&b.words[i])
        if word == 0:
            return NULL
        if (word ^ hash) >> 32 == 0 and <uint32_t>word != DELETED:
            route = route_at(t, <uint32_t>word - 1)
            if memcmp(route.key, key, 32) == 0:
                return route
        i = (i + 1) & b.mask


# ---- reclaiming, under the lock

cdef uint64_t oldest_reader(RouteTable* t) noexcept nogil:
    cdef uint64_t oldest = READER_AWAY
    cdef uint64_t epoch
    cdef uint32_t i
    atomic_fence()
    for i in range(t.n_readers):
        epoch = atomic_load_u64(&t.readers[i].epoch)
        if epoch < oldest:
            oldest = epoch
    return oldest


cdef uint64_t epoch_advance(RouteTable* t) noexcept nogil:
    # Readers that entered after the returned epoch cannot see what is retired now.
    cdef uint64_t epoch = atomic_peek_u64(&t.epoch)
    atomic_store_u64(&t.epoch, epoch + 1)
    return epoch


cdef void reclaim(RouteTable* t) noexcept nogil:
    cdef uint64_t oldest
    cdef uint32_t i
    cdef uint32_t kept = 0
    cdef Buckets* b
    cdef Buckets** link
    if t.n_limbo == 0 and t.retired is NULL:
        return
    oldest = oldest_reader(t)
    for i in range(t.n_limbo):
        if t.limbo_epoch[i] < oldest:
            arena_free(&t.routes, t.limbo[i])
        else:
            t.limbo[kept] = t.limbo[i]
            t.limbo_epoch[kept] = t.limbo_epoch[i]
            kept += 1
    t.n_limbo = kept
    link = &t.retired
    while link[0] is not NULL:
        b = link[0]
        if b.retired_epoch < oldest:
            link[0] = b.next_retired
            free(b)
        else:
            link = &b.next_retired


cdef bint limbo_reserve(RouteTable* t) noexcept nogil:
    # `limbo` has a place for every live route, so removing a route never needs memory.
    cdef uint32_t capacity = t.limbo_capacity
    cdef void* grown
    if t.routes.n_live < capacity:
        return True
    capacity = capacity * 2 if capacity else FIRST_BUCKETS
    grown = realloc(t.limbo, capacity * sizeof(uint32_t))
    if grown is NULL:
        return False
    t.limbo = <uint32_t*>grown
    grown = realloc(t.limbo_epoch, capacity * sizeof(uint64_t))
    if grown is NULL:
        return False
    t.limbo_epoch = <uint64_t*>grown
    t.limbo_capacity = capacity
    return True


# ---- buckets, under the lock

cdef void bucket_insert(Buckets* b, uint64_t hash, uint32_t index) noexcept nogil:
    cdef uint64_t i = hash & b.mask
    cdef uint32_t at
    while True:
        at = <uint32_t>atomic_peek_u64(&b.words[i])
        if at == 0 or at == DELETED:
            if at == 0:
                b.n_used += 1
            b.n_live += 1
            atomic_store_u64(&b.words[i], bucket_word(hash, index))
            return
        i = (i + 1) & b.mask


cdef void bucket_delete(Buckets* b, uint64_t hash, uint32_t index) noexcept nogil:
    cdef uint64_t i = hash & b.mask
    cdef uint64_t word = bucket_word(hash, index)
    while atomic_peek_u64(&b.words[i]) != word:
        i = (i + 1) & b.mask
    b.n_live -= 1
    if atomic_peek_u64(&b.words[(i + 1) & b.mask]) == 0:
        b.n_used -= 1            # no probe goes past this bucket
        atomic_store_u64(&b.words[i], 0)
    else:
        atomic_store_u64(&b.words[i], DELETED)


cdef bint buckets_reserve(RouteTable* t) noexcept nogil:
    # At least a quarter of the buckets stay empty, so a probe ends soon.
    cdef Buckets* old = t.buckets
    cdef Buckets* fresh
    cdef uint64_t size = old.mask + 1
    cdef uint64_t i
    cdef uint64_t word
    cdef Route* route
    if (old.n_used + 1) * 4 <= size * 3:
        return True
    if (old.n_live + 1) * 2 > size:
        size *= 2
    fresh = buckets_new(size)
    if fresh is NULL:
        return old.n_used + 1 < old.mask     # slower, but correct while one bucket stays empty
    for i in range(old.mask + 1):
        word = atomic_peek_u64(&old.words[i])
        if word != 0 and <uint32_t>word != DELETED:
            route = route_at(t, <uint32_t>word - 1)
            bucket_insert(fresh, route.hash, route.index)
    atomic_store_ptr(<void**>&t.buckets, fresh)
    old.retired_epoch = epoch_advance(t)
    old.next_retired = t.retired
    t.retired = old
    return True


# ---- routes, under the lock

cdef Route* route_new(RouteTable* t, const uint8_t* key) noexcept nogil:
    cdef uint32_t index
    cdef Route* route
    reclaim(t)
    if not buckets_reserve(t) or not limbo_reserve(t):
        return NULL
    index = arena_alloc(&t.routes)
    if index == ARENA_FULL:
        return NULL
    route = route_at(t, index)
    memset(route, 0, sizeof(Route))
    route.index = index
    memcpy(route.key, key, 32)
    route.hash = routes_hash(t, key)
    route.stamp = t.next_stamp
    atomic_store_u64(&t.next_stamp, t.next_stamp + 1)
    unrouted_join(t, route)
    bucket_insert(t.buckets, route.hash, index)
    return route


cdef void route_empty(RouteTable* t, Route* route) noexcept nogil:
    list_free(&route.members)
    list_free(&route.forwarders)
    list_free(&route.history)
    list_free(&route.disabled)
    handle_set_free(t, &route.gone_watchers)


cdef void route_remove(RouteTable* t, Route* route) noexcept nogil:
    bucket_delete(t.buckets, route.hash, route.index)
    route_empty(t, route)
    t.limbo[t.n_limbo] = route.index
    t.limbo_epoch[t.n_limbo] = epoch_advance(t)
    t.n_limbo += 1
    reclaim(t)


cdef bint list_append(HandleList* list, uint64_t handle) noexcept nogil:
    # The first handle needs no memory: a route whose list cannot grow is in use by others.
    if list.n == list.capacity and not list_grow(list):
        return False
    list.items[list.n] = handle
    list.n += 1
    return True


cdef bint list_grow(HandleList* list) noexcept nogil:
    cdef uint32_t capacity = 2 * list.capacity
    cdef uint64_t* grown
    if capacity == 0:
        list.items = &list.single
        list.capacity = 1
        return True
    grown = <uint64_t*>realloc(NULL if list.items is &list.single else list.items,
                               capacity * sizeof(uint64_t))
    if grown is NULL:
        return False
    if list.items is &list.single:
        grown[0] = list.single
    list.items = grown
    list.capacity = capacity
    return True


cdef void list_free(HandleList* list) noexcept nogil:
    if list.items is not &list.single:
        free(list.items)
    memset(list, 0, sizeof(HandleList))


cdef bint list_contains(const HandleList* list, uint64_t handle) noexcept nogil:
    cdef uint32_t i
    for i in range(list.n):
        if list.items[i] == handle:
            return True
    return False


cdef bint list_remove(HandleList* list, uint64_t handle) noexcept nogil:
    cdef uint32_t i
    for i in range(list.n):
        if list.items[i] == handle:
            list.n -= 1
            memmove(&list.items[i], &list.items[i + 1], (list.n - i) * sizeof(uint64_t))
            return True
    return False


cdef bint route_settle(RouteTable* t, Route* route, HandleSet* watchers) noexcept nogil:
    # Called after a member or a forwarder left. True when the key has none left: the route is gone.
    if route.members.n or route.forwarders.n:
        return False
    watchers[0] = route.gone_watchers
    memset(&route.gone_watchers, 0, sizeof(HandleSet))
    route_remove(t, route)
    return True


cdef Route* route_get(RouteTable* t, const uint8_t* key) noexcept nogil:
    cdef Route* route = routes_find(t, key)
    return route if route is not NULL else route_new(t, key)


cdef void activate(Route* route, uint64_t handle) noexcept nogil:
    atomic_store_u8(&route.is_fighting, handle == 0 and route.members.n > 1)
    atomic_store_u64(&route.active, handle)


include "duplicate_policy.pxi"
include "gone_watchers.pxi"


# ---- local sessions

cdef void duplicates_count(RouteTable* t, uint32_t n_members, uint32_t step) noexcept nogil:
    # The key got its n_members-th session (step 1) or lost it (step -1).
    if n_members == 1:
        t.n_local_keys += step
    elif n_members == 2:
        t.n_duplicate_keys += step
        t.n_duplicate_members += 2 * step
    else:
        t.n_duplicate_members += step


cdef Route* routes_register(RouteTable* t, const uint8_t* key, uint64_t handle,
                            uint32_t* n_members) noexcept nogil:
    """Make a new session the active one of its key (§6.2). NULL when memory is out."""
    cdef Route* route
    pthread_mutex_lock(&t.lock)
    route = route_get(t, key)
    if route is not NULL and not list_append(&route.members, handle):
        route = NULL
    if route is not NULL:
        n_members[0] = route.members.n
        duplicates_count(t, route.members.n, 1)
        if t.disable_fighters:
            fighter_joined(route, handle)
        else:
            writer_joined(route, handle)
    pthread_mutex_unlock(&t.lock)
    return route


cdef bint routes_unregister(RouteTable* t, Route* route, uint64_t handle,
                            HandleSet* watchers) noexcept nogil:
    """Remove a session. True when its key left the region with it.

    Then *watchers belongs to the caller, which notifies its members and frees it.
    """
    cdef bint gone = False
    pthread_mutex_lock(&t.lock)
    if list_remove(&route.members, handle):
        duplicates_count(t, route.members.n + 1, <uint32_t>-1)
        if t.disable_fighters:
            fighter_left(route, handle)
        else:
            writer_left(route, handle)
        gone = route_settle(t, route, watchers)
    pthread_mutex_unlock(&t.lock)
    return gone


cdef void routes_note_sender(RouteTable* t, Route* route, uint64_t handle) noexcept nogil:
    """Make the member that just sent a frame active, or disable members that fight (§6.3)."""
    if (atomic_load_u64(&route.active) == handle and atomic_load_u64(&route.unheard) != handle
            and not t.disable_fighters):
        return                   # the fast path takes no lock
    pthread_mutex_lock(&t.lock)
    if t.disable_fighters:
        fighter_sent(route, handle)
    else:
        writer_sent(route, handle)
    pthread_mutex_unlock(&t.lock)


cdef uint32_t routes_members(RouteTable* t, const uint8_t* key, uint64_t* handles,
                             uint32_t capacity) noexcept nogil:
    """Copy up to capacity handles of the key's sessions; return the number of sessions."""
    cdef Route* route
    cdef uint32_t n = 0
    pthread_mutex_lock(&t.lock)
    route = routes_find(t, key)
    if route is not NULL and route.members.n:
        n = route.members.n
        memcpy(handles, route.members.items, min(n, capacity) * sizeof(uint64_t))
    pthread_mutex_unlock(&t.lock)
    return n


# ---- forwarders (§7.5)

cdef bint routes_add_forwarder(RouteTable* t, const uint8_t* key, uint64_t link) noexcept nogil:
    """Add a mesh link that reaches the key, unless it is there already. False without memory."""
    cdef Route* route
    cdef bint added = True
    pthread_mutex_lock(&t.lock)
    route = route_get(t, key)
    if route is NULL:
        added = False
    elif not list_contains(&route.forwarders, link):
        added = list_append(&route.forwarders, link)
        if added:
            atomic_store_u64(&route.forwarder, route.forwarders.items[0])
            t.n_multiforwarders_created += <uint64_t>(route.forwarders.n == 2)
    pthread_mutex_unlock(&t.lock)
    return added


cdef bint routes_remove_forwarder(RouteTable* t, const uint8_t* key, uint64_t link,
                                  HandleSet* watchers) noexcept nogil:
    """Remove a mesh link from the key. True as in routes_unregister."""
    cdef Route* route
    cdef bint gone = False
    pthread_mutex_lock(&t.lock)
    route = routes_find(t, key)
    if route is not NULL and list_remove(&route.forwarders, link):
        t.n_multiforwarders_deleted += <uint64_t>(route.forwarders.n == 1)
        atomic_store_u64(&route.forwarder, route.forwarders.items[0] if route.forwarders.n else 0)
        gone = route_settle(t, route, watchers)
    elif route is not NULL and route.forwarders.n == 1:
        t.n_other_forwarder_deletes += 1
    pthread_mutex_unlock(&t.lock)
    return gone
