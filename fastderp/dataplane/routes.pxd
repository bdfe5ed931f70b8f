# The routing table: which session gets the packets for a key (PROTOCOL §6.1–§6.4, §6.7, §7.5).
# Workers read without a lock: a bucket is one 64-bit word (half of the key's hash, index of the
# route), and a grown table replaces the old one by one pointer store. Old tables and removed routes
# are freed when every reader has passed a quiescent point. Any thread writes under `lock`, the
# first in the lock order: table, then session output, then a worker's wheel.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.arena cimport Arena
from fastderp.dataplane.sys cimport pthread_mutex_t

cdef enum:
    ROUTES_READERS = 256         # worker threads
    # by hash of the key; all places take 165 KB, allocated for the first pair
    UNROUTED_BUCKETS = 256
    UNROUTED_PLACES = 16
    # for all sets of gone watchers: at least 2 million pairs, 20 for each of 100,000 keys; a Plane
    # on a machine with less than 1 GiB takes less
    GONE_WATCHERS_CAP_BYTES = 67108864

cdef struct HandleList:          # guarded by the table's lock; never moves
    # points to `single` while capacity is 1: most keys have one session, which needs no memory
    uint64_t* items
    uint64_t single
    uint32_t n
    uint32_t capacity

cdef struct HandleSet:           # open addressing, 0 = empty; guarded by the table's lock
    uint64_t* slots
    uint32_t n
    uint32_t capacity            # power of two, or 0
    uint32_t n_pause             # inserts to reject before the next attempt to grow

cdef struct Route:
    uint32_t next_free           # used by the arena while the route is free
    uint32_t index               # fixed while a reader can see the route, as key, hash, stamp
    uint8_t key[32]
    uint64_t hash
    uint64_t stamp               # unique: identifies one presence of the key in the region
    uint64_t active              # atomic: handle of the local session that gets data, 0 = none
    # atomic: handle of the member that made the key a duplicate, until it sends a frame; or 0
    uint64_t unheard
    uint8_t is_fighting          # atomic: members fight over the key and none is active
    # atomic: handle of the mesh link for the key while it is not local, 0 = none
    uint64_t forwarder
    # Guarded by the lock:
    # sessions with this key; the last of the others becomes active when the active one leaves
    HandleList members
    # mesh links that announced the key, oldest first; the oldest is used
    HandleList forwarders
    # only under disable_fighters: members in the order they sent, adjacent repeats collapsed
    HandleList history
    HandleList disabled          # only under disable_fighters: members that get no packets
    HandleSet gone_watchers      # receivers that get a PeerGone when the key leaves (§6.7)

# A session got a packet of a key that is not in the region (yet). Guarded by the table's lock.
cdef struct Unrouted:
    uint64_t receiver            # 0 = this place is free
    uint8_t key[32]

cdef struct UnroutedBucket:      # guarded by the table's lock
    Unrouted places[UNROUTED_PLACES]
    uint32_t next                # the place to overwrite next

cdef struct Buckets:             # guarded by the table's lock, except mask and words
    uint64_t mask                # fixed
    uint64_t n_used              # live and deleted buckets
    uint64_t n_live
    Buckets* next_retired
    uint64_t retired_epoch
    uint64_t words[1]            # atomic, written under the lock

# Written by its worker only, read by threads that reclaim; one cache line each.
cdef struct Reader:
    uint64_t epoch               # atomic; READER_AWAY while the reader holds no pointers
    uint64_t pad[7]

ctypedef bint (*handle_alive_fn)(void* context, uint64_t handle) noexcept nogil

cdef struct RouteTable:
    pthread_mutex_t lock
    uint64_t secret[2]           # fixed
    # fixed: the policy for duplicate keys (§6.3); False = the last writer is active
    bint disable_fighters
    uint64_t gone_watchers_cap_bytes      # fixed: the limit for gone_watchers_bytes
    uint64_t gone_watchers_bytes          # atomic: memory of all HandleSets
    Buckets* buckets             # atomic pointer
    Arena routes                 # alloc and free under the lock
    uint64_t next_stamp          # atomic, written under the lock
    UnroutedBucket* unrouted    # guarded by the lock; NULL until the first pair
    handle_alive_fn alive        # fixed: tells whether a handle's session still exists
    void* alive_context          # fixed
    uint64_t epoch               # atomic, written under the lock
    Buckets* retired             # guarded by the lock
    uint32_t* limbo              # removed routes with their epochs; guarded by the lock
    uint64_t* limbo_epoch
    uint32_t n_limbo
    uint32_t limbo_capacity
    # Guarded by the lock, for counters:
    uint32_t n_local_keys
    uint32_t n_duplicate_keys
    uint32_t n_duplicate_members
    uint64_t n_multiforwarders_created
    uint64_t n_multiforwarders_deleted
    uint64_t n_other_forwarder_deletes
    uint32_t n_readers           # fixed
    Reader readers[ROUTES_READERS]

cdef bint routes_init(RouteTable* t, uint32_t n_readers, bint disable_fighters,
                      uint64_t gone_watchers_cap_bytes,
                      handle_alive_fn alive, void* alive_context) noexcept nogil
cdef void routes_destroy(RouteTable* t) noexcept nogil
cdef void routes_reader_enter(RouteTable* t, uint32_t reader) noexcept nogil
cdef void routes_reader_leave(RouteTable* t, uint32_t reader) noexcept nogil

# For readers between enter and leave.
cdef Route* routes_find(RouteTable* t, const uint8_t* key) noexcept nogil
cdef uint64_t routes_hash(const RouteTable* t, const uint8_t* key) noexcept nogil
cdef uint64_t routes_unrouted_stamp(const RouteTable* t, const uint8_t* key) noexcept nogil

# For any thread; these take the lock, except handle_set_free.
cdef Route* routes_register(RouteTable* t, const uint8_t* key, uint64_t handle,
                            uint32_t* n_members) noexcept nogil
cdef bint routes_unregister(RouteTable* t, Route* route, uint64_t handle,
                            HandleSet* watchers) noexcept nogil
cdef void routes_note_sender(RouteTable* t, Route* route, uint64_t handle) noexcept nogil
cdef bint routes_add_gone_watcher(RouteTable* t, Route* route, uint64_t receiver) noexcept nogil
cdef void routes_note_unrouted(RouteTable* t, const uint8_t* key, uint64_t receiver) noexcept nogil
cdef bint routes_add_forwarder(RouteTable* t, const uint8_t* key, uint64_t link) noexcept nogil
cdef bint routes_remove_forwarder(RouteTable* t, const uint8_t* key, uint64_t link,
                                  HandleSet* watchers) noexcept nogil
cdef uint32_t routes_members(RouteTable* t, const uint8_t* key, uint64_t* handles,
                             uint32_t capacity) noexcept nogil
cdef void handle_set_free(RouteTable* t, HandleSet* s) noexcept nogil
