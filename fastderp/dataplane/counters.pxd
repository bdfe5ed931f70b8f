# Counters of one thread, on cache lines of their own; added up only when somebody reads them
# (PROTOCOL §14). Written by that thread alone, with counter_add.

from libc.stdint cimport uint64_t

cdef enum DropReason:             # also the first index of packets_dropped
    DROP_UNKNOWN_DEST
    DROP_UNKNOWN_DEST_ON_FWD
    DROP_GONE_DISCONNECTED
    DROP_QUEUE_HEAD
    DROP_QUEUE_TAIL
    DROP_WRITE_ERROR
    DROP_DUP_CLIENT
    N_DROP_REASONS

cdef enum:                       # packet kinds
    KIND_DISCO
    KIND_OTHER
    N_KINDS

# of frames written at once: 0 to 10, up to 15, 20, 25, 50, 100, more
cdef enum:
    N_FLUSH_BUCKETS = 17

cdef struct Counters:
    uint64_t accepts
    uint64_t closed
    uint64_t packets_received[N_KINDS]
    uint64_t bytes_received
    uint64_t packets_sent
    uint64_t bytes_sent
    uint64_t packets_dropped[N_DROP_REASONS][N_KINDS]
    uint64_t bytes_dropped[N_DROP_REASONS][N_KINDS]
    uint64_t packets_forwarded_in
    uint64_t packets_forwarded_out
    uint64_t peer_gone_lost              # news of departures for clients that let too much pile up
    uint64_t packets_forwarded_lost      # of those: never reached the other relay's socket
    uint64_t peer_gone_disconnected_frames
    uint64_t peer_gone_not_here_frames
    uint64_t got_ping
    uint64_t sent_pong
    uint64_t unknown_frames      # of types that PROTOCOL §2 has no name for
    uint64_t home_moves_in
    uint64_t home_moves_out
    uint64_t home_connections    # a gauge: may be negative in one thread, the sum is not
    uint64_t notideal_connections
    uint64_t sealed_connections  # whose TLS records are opened here; as home_connections
    uint64_t total_dup_client_conns
    uint64_t sclient_write_timeouts
    uint64_t rate_limit_per_client_waited
    uint64_t reads               # recv calls that brought bytes
    uint64_t writes              # send calls
    uint64_t flushes[N_FLUSH_BUCKETS]
    uint64_t flushed_frames
    uint64_t pad[8]
