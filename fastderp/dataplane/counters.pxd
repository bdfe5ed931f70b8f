# Written by setup.py from the table in counters.py: change that.
#
# Counters of one thread, on cache lines of their own, and added up when they are read
# (PROTOCOL §14). Written by that thread alone, with counter_add.

from libc.stdint cimport uint64_t

cdef enum DropReason:
    DROP_UNKNOWN_DEST
    DROP_UNKNOWN_DEST_ON_FWD
    DROP_GONE_DISCONNECTED
    DROP_QUEUE_HEAD
    DROP_QUEUE_TAIL
    DROP_WRITE_ERROR
    DROP_DUP_CLIENT
    N_DROP_REASONS

cdef enum:
    KIND_DISCO
    KIND_OTHER
    N_KINDS

cdef struct Counters:
    uint64_t opened
    uint64_t closed
    uint64_t packets_received_kind[N_KINDS]
    uint64_t bytes_received
    uint64_t packets_sent
    uint64_t bytes_sent
    uint64_t packets_dropped[N_DROP_REASONS][N_KINDS]
    uint64_t bytes_dropped[N_DROP_REASONS][N_KINDS]
    uint64_t packets_forwarded_in
    uint64_t packets_forwarded_out
    uint64_t packets_forwarded_lost
    uint64_t peer_gone_lost
    uint64_t peer_gone_disconnected_frames
    uint64_t peer_gone_not_here_frames
    uint64_t got_ping
    uint64_t sent_pong
    uint64_t unknown_frames
    uint64_t home_moves_in
    uint64_t home_moves_out
    uint64_t current_home_connections
    uint64_t current_notideal_connections
    uint64_t sealed_connections
    uint64_t total_dup_client_conns
    uint64_t sclient_write_timeouts
    uint64_t rate_limit_per_client_waited
    uint64_t clients_held_back
    uint64_t reads
    uint64_t writes
    uint64_t buffered_write_frames[17]
    uint64_t buffered_write_frames_sum
    uint64_t queue_delay_seconds[11]
    uint64_t queue_delay_seconds_sum
    uint64_t pad[8]


cdef inline int buffered_write_frames_bucket(uint64_t value) noexcept nogil:
    if value <= 0:
        return 0
    if value <= 1:
        return 1
    if value <= 2:
        return 2
    if value <= 3:
        return 3
    if value <= 4:
        return 4
    if value <= 5:
        return 5
    if value <= 6:
        return 6
    if value <= 7:
        return 7
    if value <= 8:
        return 8
    if value <= 9:
        return 9
    if value <= 10:
        return 10
    if value <= 15:
        return 11
    if value <= 20:
        return 12
    if value <= 25:
        return 13
    if value <= 50:
        return 14
    if value <= 100:
        return 15
    return 16


cdef inline int queue_delay_seconds_bucket(uint64_t value) noexcept nogil:
    if value <= 100000:
        return 0
    if value <= 1000000:
        return 1
    if value <= 5000000:
        return 2
    if value <= 10000000:
        return 3
    if value <= 25000000:
        return 4
    if value <= 50000000:
        return 5
    if value <= 100000000:
        return 6
    if value <= 250000000:
        return 7
    if value <= 500000000:
        return 8
    if value <= 1000000000:
        return 9
    return 10
