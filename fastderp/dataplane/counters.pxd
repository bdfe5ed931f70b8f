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

cdef inline int delay_bucket(uint64_t ns) noexcept nogil:
    """Return the bucket of a time in queue_delay_seconds."""
    if ns <= 100000:
        return 0
    if ns <= 1000000:
        return 1
    if ns <= 5000000:
        return 2
    if ns <= 10000000:
        return 3
    if ns <= 25000000:
        return 4
    if ns <= 50000000:
        return 5
    if ns <= 100000000:
        return 6
    if ns <= 250000000:
        return 7
    if ns <= 500000000:
        return 8
    if ns <= 1000000000:
        return 9
    return 10
