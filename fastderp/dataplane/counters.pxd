# The counters of one thread, on separate cache lines; reports.pyx adds them up on demand (PROTOCOL
# §14). Only that thread writes them, with counter_add; any thread reads them.

from libc.stdint cimport uint64_t

cdef enum DropReason:            # also the first index of packets_dropped
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

# Frames per write: 0 to 10, up to 15, 20, 25, 50, 100, more.
cdef enum:
    N_FLUSH_BUCKETS = 17

cdef struct Counters:            # written by one thread, read by any
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
    uint64_t peer_gone_lost      # PeerGone frames for clients whose backlog was too long
    uint64_t packets_forwarded_lost      # of packets_forwarded_out: never written to the socket
    uint64_t peer_gone_disconnected_frames
    uint64_t peer_gone_not_here_frames
    uint64_t got_ping
    uint64_t sent_pong
    uint64_t unknown_frames      # of types without a name in PROTOCOL §2
    uint64_t home_moves_in
    uint64_t home_moves_out
    uint64_t home_connections    # a gauge: one thread may be negative, the sum is not
    uint64_t notideal_connections        # a gauge, like home_connections
    # a gauge, like home_connections: clients whose TLS records the data plane opens
    uint64_t sealed_connections
    uint64_t total_dup_client_conns
    uint64_t sclient_write_timeouts
    uint64_t rate_limit_per_client_waited
    uint64_t reads               # recv calls that brought bytes
    uint64_t writes              # send calls
    uint64_t flushes[N_FLUSH_BUCKETS]
    uint64_t flushed_frames
    uint64_t pad[8]
